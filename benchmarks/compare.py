"""One image through every tool and every yardstick: backups of its three states, restores, verification."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zstandard import ZstdCompressor

from images import Images
from measure import Cost, middle, run
from peers import Format, Tool
from pipeline import LEVEL

Step = Literal["full", "unchanged", "changed", "scattered", "restore raw", "restore qcow2", "verify"]
STEPS: tuple[Step, ...] = ("full", "unchanged", "changed", "scattered", "restore raw", "restore qcow2", "verify")
YARDSTICKS = {
    "pipeline": ["full", "--output"],
    "pipeline, fsync": ["full", "--fsync", "--output"],
    "zstd limit": ["zstd"],
    "read and BLAKE3, one core": ["hash"],
    "write": ["write", "--output"],
    "write, fsync": ["write", "--fsync", "--output"],
}
PIPELINE = Path(__file__).with_name("pipeline.py")
COMPARE_SECONDS = 600


@dataclass(frozen=True)
class Done:
    """A step of one tool: its cost, and by how many bytes the repository grew."""

    cost: Cost
    stored: int


class WrongRestoreError(Exception):
    """A tool restored something else than it had backed up."""


def run_tool(kind: type[Tool], images: Images, folder: Path) -> dict[Step, Done]:
    """Take one tool through all steps, in a fresh repository that is removed afterwards."""
    tool = kind(folder / kind.name)
    done: dict[Step, Done] = {}
    before = tool.stored()

    def note(step: Step, action: Callable[[], Cost | None]) -> None:
        nonlocal before
        os.sync()  # what others still have to write must not slow this one down
        cost = action()
        if cost is not None:
            after = tool.stored()
            done[step] = Done(cost, after - before)
            before = after

    warm(images.base)
    note("full", lambda: tool.backup(images.base))
    if kind.incremental:
        images.base.touch()
        note("unchanged", lambda: tool.backup(images.base))
        warm(images.changed)
        note("changed", lambda: tool.backup(images.changed))
        warm(images.scattered)
        note("scattered", lambda: tool.backup(images.scattered))
    expected = images.scattered if kind.incremental else images.base
    _warm_repository(tool)
    formats: tuple[tuple[Step, Format], ...] = (("restore raw", "raw"), ("restore qcow2", "qcow2"))
    for step, form in formats:
        target = folder / f"restored.{form}"
        note(step, lambda target=target, form=form: tool.restore(target, form))  # type: ignore[misc]  # bound now, not later
        if step in done:
            _check(expected, target, form)
            target.unlink()
            _warm_repository(tool)
    note("verify", tool.verify)
    tool.remove()
    return done


def run_yardstick(name: str, image: Path, folder: Path, *options: str) -> float:
    """Run one yardstick in a process of its own and return its seconds."""
    arguments = YARDSTICKS[name]
    output = folder / "yardstick"
    os.sync()
    warm(image)
    extra = [output] if arguments[-1] == "--output" else []
    cost = run([sys.executable, PIPELINE, arguments[0], image, *arguments[1:], *extra, *options])
    output.unlink(missing_ok=True)
    return float(json.loads(cost.output)["seconds"])


def combine(runs: Sequence[dict[Step, Done]]) -> dict[Step, Done]:
    """Return the middle of several runs of one tool."""
    return {
        step: Done(middle(run[step].cost for run in runs), sorted(run[step].stored for run in runs)[len(runs) // 2])
        for step in STEPS
        if step in runs[0]
    }


def compressed_dirty_chunks(images: Images, chunk_size: int) -> int:
    """Return the bytes that the chunks touched by the scattered writes have after zstd-3: what an increment cannot avoid."""
    compressor = ZstdCompressor(level=LEVEL)
    total = 0
    with images.scattered.open("rb") as file:
        for number in images.dirty_chunks(chunk_size):
            file.seek(number * chunk_size)
            total += len(compressor.compress(file.read(chunk_size)))
    return total


def warm(image: Path) -> None:
    """Read the file once, so that every tool finds it in the page cache."""
    with image.open("rb", buffering=0) as file:
        while file.read(8 << 20):
            pass


def _warm_repository(tool: Tool) -> None:
    """Read the repository once: some tools write past the page cache and some do not, but it shall be in it for all of them."""
    paths = [tool.repository] if tool.repository.is_file() else tool.repository.rglob("*")
    for path in paths:
        if path.is_file():
            warm(path)


def _check(expected: Path, restored: Path, form: Format) -> None:
    command = ["qemu-img", "compare", "-q", "-f", "raw", "-F", form, str(expected), str(restored)]
    if subprocess.run(command, check=False, timeout=COMPARE_SECONDS).returncode != 0:
        raise WrongRestoreError(f"{restored.name} is not what was backed up")
