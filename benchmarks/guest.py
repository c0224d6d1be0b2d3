"""Backups of a running guest over NBD, ours and virtnbdbackup's. The guest runs under a private libvirt daemon."""

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from images import Shape, collect_content, make_file_system
from lab_backup.demo.disk import DiskSpec
from lab_backup.demo.guest import build_guest
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.units import GiB, MiB
from measure import Cost, middle, run, stored_bytes
from peers import LAB_BACKUP, LabBackup, answer

CONVERT_SECONDS = 900
GUEST_SECONDS = 900  # writing in a guest without KVM takes its time
THIN_SIZES = {"full": (4 * GiB, 64 * GiB), "small": (1 * GiB, 16 * GiB)}
STEPS = ("full", "unchanged", "changed", "scattered", "restore qcow2", "verify")

_CHANGE = "dd if=/dev/urandom of=/mnt/vda/change bs=1M count={mebibytes} 2>/dev/null && sync"
# Every n-th file gets one new block at its beginning, so the writes are spread over the disk as the files are.
_SCATTER = """
cd /mnt/vda && find . -xdev -type f -size +8k >/tmp/files
step=$(( $(wc -l </tmp/files) / {count} ))
awk "NR % ${{step:-1}} == 0" /tmp/files | head -n {count} | while read -r file; do
    dd if=/dev/urandom of="$file" bs=4k count=1 conv=notrunc 2>/dev/null
done
sync
"""


class GuestTool(ABC):
    """A tool that backs up the running guest `name`, with everything it keeps in `folder`."""

    name: str

    def __init__(self, folder: Path, hypervisor: Hypervisor, guest: str) -> None:
        """Prepare; that is not measured."""
        folder.mkdir()
        self.folder = folder
        self.hypervisor = hypervisor
        self.guest = guest

    @abstractmethod
    def backup(self, *, full: bool) -> Cost:
        """Back up the guest, whole or what changed since the last time."""

    @abstractmethod
    def restore(self, folder: Path) -> Cost:
        """Restore the disk as a qcow2 file into `folder`."""

    @abstractmethod
    def verify(self) -> Cost | None:
        """Check all that is stored; None where the tool cannot."""

    @abstractmethod
    def stored(self) -> int:
        """Return the bytes of all backups."""

    def bytes_read(self, cost: Cost) -> int | None:
        """Return how much of the disk a backup read, where the tool tells."""
        del cost
        return None


class Ours(GuestTool):
    """This project."""

    name = "lab-backup"

    def __init__(self, folder: Path, hypervisor: Hypervisor, guest: str) -> None:
        """Make a repository."""
        super().__init__(folder, hypervisor, guest)
        self._tool = LabBackup(folder / "lab-backup")

    def backup(self, *, full: bool) -> Cost:
        """Back up, by the bitmap unless `full`."""
        options = ["--full"] if full else []
        return self._tool.run(
            LAB_BACKUP, "backup", "vm", self.guest, "--connect", self.hypervisor.uri, "--json", *options
        )

    def restore(self, folder: Path) -> Cost:
        """Restore the disk alone, as virtnbdrestore does."""
        target = folder / "vda.qcow2"
        return self._tool.run(
            LAB_BACKUP,
            "restore",
            "image",
            f"latest:vm/{self.guest}",
            "--disk",
            "vda",
            "--to",
            target,
            "--format",
            "qcow2",
        )

    def verify(self) -> Cost:
        """Decrypt, decompress and hash everything."""
        return self._tool.run(LAB_BACKUP, "verify", "--read-data", "--json")

    def stored(self) -> int:
        """Return the repository's size."""
        return self._tool.stored()

    def bytes_read(self, cost: Cost) -> int | None:
        """Take it from the answer."""
        return int(str(answer(cost)["bytes_read"]))


class Virtnbdbackup(GuestTool):
    """virtnbdbackup with compression (LZ4). Its socket and scratch file lie where QEMU may write."""

    name = "virtnbdbackup"

    def backup(self, *, full: bool) -> Cost:
        """Back up into one folder, which holds the chain."""
        place = self.hypervisor.directory
        level = "full" if full else "inc"
        paths: list[str | Path] = ["-o", self.folder / "chain", "-f", place / "vnb.sock", "-S", place]
        return run(["virtnbdbackup", *self._connection, "-d", self.guest, "-l", level, "-z", "-n", *paths])

    @property
    def _connection(self) -> list[str]:
        # It insists on a user for every URI with a transport; the daemon never asks for one.
        return ["-U", self.hypervisor.uri, "--user", "nobody", "--password", "none"]

    def restore(self, folder: Path) -> Cost:
        """Replay the chain."""
        socket = self.hypervisor.directory / "vnr.sock"
        return run(["virtnbdrestore", *self._connection, "-i", self.folder / "chain", "-o", folder, "-f", socket, "-n"])

    def verify(self) -> None:
        """Debian's version cannot."""
        return

    def stored(self) -> int:
        """Return the size of the disk's part of the chain: it also copies kernel and initrd, which others leave alone."""
        return sum(stored_bytes(path) for path in (self.folder / "chain").glob("vda.*"))


TOOLS: tuple[type[GuestTool], ...] = (Ours, Virtnbdbackup)


def measure_guest(
    shape: Shape, tools: Sequence[str], folder: Path, runs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return seconds, bytes and memory of each tool and step, on a fresh guest for each tool."""
    disk = _make_disk(folder, shape, shape.image)
    image = build_guest(folder.parent / "guest")
    figures: dict[str, Any] = {}
    costs: dict[str, dict[str, list[tuple[Cost, int, int | None]]]] = {
        tool.name: {} for tool in TOOLS if tool.name in tools
    }
    with Hypervisor(image) as hypervisor:
        figures["accelerator"] = str(hypervisor.accelerator)
        for turn in range(runs):
            for kind in (tool for tool in TOOLS if tool.name in tools):
                say(f"guest, run {turn + 1}: {kind.name}")
                with _running_guest(hypervisor, disk, "bench") as guest:
                    _take_through(kind(folder / kind.name, hypervisor, guest.name), guest, shape, costs[kind.name])
                shutil.rmtree(folder / kind.name)
    figures["tools"] = {tool: {step: _row(found) for step, found in steps.items()} for tool, steps in costs.items()}
    return figures


def measure_thin(shape: Shape, folder: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what an increment of the same change costs on a small and on a large thin disk."""
    sizes = THIN_SIZES["full" if shape.image > 1 * GiB else "small"]
    image = build_guest(folder.parent / "guest")
    rows = []
    with Hypervisor(image) as hypervisor:
        for size in sizes:
            say(f"thin disk of {size // GiB} GiB")
            disk = _make_disk(folder, replace(shape, content=shape.content // 8), size, "-N", "65536")
            rows.append({"size": size, **_thin_row(hypervisor, disk, folder / "thin", shape, runs)})
            disk.unlink()
    return {"rows": rows, "change": shape.change}


def _thin_row(hypervisor: Hypervisor, disk: Path, folder: Path, shape: Shape, runs: int) -> dict[str, Any]:
    costs = []
    with _running_guest(hypervisor, disk, "thin") as guest:
        tool = Ours(folder, hypervisor, guest.name)
        tool.backup(full=True)
        for _ in range(runs):
            guest.shell(_CHANGE.format(mebibytes=shape.change // MiB), timeout=GUEST_SECONDS)
            os.sync()
            costs.append(tool.backup(full=False))
    shutil.rmtree(folder)
    cost = middle(costs)
    return {"seconds": cost.seconds, "bytes_read": tool.bytes_read(cost), "peak_anonymous": cost.peak_anonymous}


def _take_through(
    tool: GuestTool, guest: Guest, shape: Shape, costs: dict[str, list[tuple[Cost, int, int | None]]]
) -> None:
    def note(step: str, action: Callable[[], Cost | None]) -> None:
        os.sync()
        before = tool.stored()
        cost = action()
        if cost is None:
            return
        read = tool.bytes_read(cost) if step in STEPS[:4] else None
        costs.setdefault(step, []).append((cost, tool.stored() - before, read))

    note("full", lambda: tool.backup(full=True))
    note("unchanged", lambda: tool.backup(full=False))
    guest.shell(_CHANGE.format(mebibytes=shape.change // MiB), timeout=GUEST_SECONDS)
    note("changed", lambda: tool.backup(full=False))
    guest.shell(_SCATTER.format(count=shape.scattered), timeout=GUEST_SECONDS)
    note("scattered", lambda: tool.backup(full=False))
    target = tool.folder / "restored"
    target.mkdir()
    note("restore qcow2", lambda: tool.restore(target))
    shutil.rmtree(target)
    note("verify", tool.verify)


def _row(found: list[tuple[Cost, int, int | None]]) -> dict[str, Any]:
    cost = middle(item[0] for item in found)
    return {
        "seconds": cost.seconds,
        "peak": cost.peak,
        "peak_anonymous": cost.peak_anonymous,
        "stored": sorted(item[1] for item in found)[len(found) // 2],
        "bytes_read": found[0][2],
    }


@contextmanager
def _running_guest(hypervisor: Hypervisor, disk: Path, name: str) -> Iterator[Guest]:
    """Boot a guest from a copy of `disk`, and remove both afterwards."""
    own = hypervisor.directory / f"{name}.qcow2"
    shutil.copyfile(disk, own)
    hypervisor.account.own(own)
    guest = define_guest(hypervisor, name, [DiskSpec(own)])
    try:
        guest.start().wait_ready()
        yield guest
    finally:
        guest.remove()
        own.unlink()


def _make_disk(folder: Path, shape: Shape, size: int, *options: str) -> Path:
    """Make a qcow2 image of `size` bytes with `shape.content` bytes of files."""
    content, raw, disk = folder / "content", folder / "disk.raw", folder / "disk.qcow2"
    collect_content(content, shape.content)
    make_file_system(raw, size, content, *options)
    shutil.rmtree(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
    subprocess.run(command, check=True, timeout=CONVERT_SECONDS)
    raw.unlink()
    return disk
