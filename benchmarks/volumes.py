"""The files of a volume that containers are measured with, and what changes in them.

They are this machine's own, in generations: each is a permutation of the bytes of the first, so that it compresses as well and yet has nothing in common
with the others. A quarter of the bytes is in large files, as a database has them.
"""

import os
import random
import shutil
from pathlib import Path

from images import RUN, collect_content
from lab_backup.units import GiB, MiB

GENERATION = 1 * GiB
LARGE_SHARE = 4  # one of so many bytes is in a large file
BLOCK = 1 * MiB


def make_content(folder: Path, size: int) -> Path:
    """Return the folder of a first generation with `size` bytes of files, one of them large; made where it is missing."""
    stamp = folder / "made"
    if not stamp.exists() or stamp.read_text() != str(size):
        shutil.rmtree(folder, ignore_errors=True)
        collect_content(folder / "content", size)
        _gather_large(folder / "content", size // LARGE_SHARE)
        os.sync()
        stamp.write_text(str(size))
    return folder / "content"


def fill(target: Path, content: Path, generations: int) -> int:
    """Write so many generations of `content` into the folder `target`; return their bytes."""
    return sum(_write_generation(target / f"generation-{number}", content, number) for number in range(generations))


def change(folder: Path, share: int) -> int:
    """Write new bytes into 1/`share` of all: half of them as small files, the other half at random places of the first large files; return how many."""
    chooser = random.Random(share)
    total = _bytes_of(folder)
    left = done = total // share // 2
    for path in chooser.sample(_small(folder), len(_small(folder))):
        if left <= 0:
            break
        size = path.stat().st_size
        path.write_bytes(chooser.randbytes(size))
        left -= size
    done -= left
    large = _large(folder)[: max(1, len(_large(folder)) // 10)]
    return done + sum(_overwrite(path, total // share // 2 // len(large), chooser) for path in large)


def scatter(folder: Path, share: int) -> int:
    """Write into 1/`share` of each large file, at random places; return how many bytes."""
    chooser = random.Random(share + 1)
    return sum(_overwrite(path, path.stat().st_size // share, chooser) for path in _large(folder))


def _overwrite(path: Path, size: int, chooser: random.Random) -> int:
    count = max(1, size // RUN)
    with path.open("r+b") as file:
        for number in chooser.sample(range(path.stat().st_size // RUN), count):
            file.seek(number * RUN)
            file.write(chooser.randbytes(RUN))
    return count * RUN


def _gather_large(content: Path, size: int) -> None:
    """Move the content of files into one large file until it has `size` bytes."""
    large = content / "large"
    total = 0
    with large.open("xb") as target:
        for path in _small(content):
            if total >= size:
                return
            total += target.write(path.read_bytes())
            path.unlink()


def _write_generation(target: Path, content: Path, number: int) -> int:
    table = bytes(random.Random(number).sample(range(256), 256)) if number else bytes(range(256))
    total = 0
    for folder, _, names in os.walk(content):
        place = target / Path(folder).relative_to(content)
        place.mkdir(parents=True)
        for name in names:
            with Path(folder, name).open("rb") as source, (place / name).open("xb") as file:
                while data := source.read(BLOCK):
                    total += file.write(data.translate(table))
    return total


def _small(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "large")


def _large(folder: Path) -> list[Path]:
    return sorted(folder.rglob("large"))


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
