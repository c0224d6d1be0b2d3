"""The disk that everything is measured on: a thin raw ext4 image full of this machine's own files, and its changed versions.

Which files go in is decided by a hash of their paths, so the mixture is fair and the same at every run on one machine.
"""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lab_backup.units import GiB, KiB, MiB

SOURCES = (Path("/usr"), Path("/opt"), Path("/var/lib"))
LARGEST_FILE = 64 * MiB  # one huge file would decide the compression ratio
BLOCK = 4 * KiB
RUN = 1 * MiB  # the pieces that a large change consists of
_UUID = "6c616220-6261-4b75-8070-62656e636800"
_MKFS_SECONDS = 600


@dataclass(frozen=True)
class Shape:
    """Sizes in bytes: the image, the files in it, the large change; and how many blocks of 4 KiB the small one has."""

    image: int
    content: int
    change: int
    scattered: int


SHAPES = {
    "full": Shape(6 * GiB, 2 * GiB, 64 * MiB, 1000),
    "small": Shape(384 * MiB, 128 * MiB, 4 * MiB, 50),
}


@dataclass(frozen=True)
class Images:
    """Three states of one disk: as made, after the large change, and after the scattered writes on top of it.

    They have the same file name in different folders, so that every tool takes them for the same file.
    """

    base: Path
    changed: Path
    scattered: Path
    shape: Shape
    change_offsets: list[int]
    scattered_offsets: list[int]

    def dirty_chunks(self, chunk_size: int) -> list[int]:
        """Return the numbers of the chunks that the scattered writes touch."""
        return sorted({offset // chunk_size for offset in self.scattered_offsets})


def make_images(folder: Path, shape: Shape) -> Images:
    """Return the images in `folder`, making them where they are missing or of another shape."""
    paths = [folder / name / "disk.raw" for name in ("base", "changed", "scattered")]
    stamp = folder / "made"
    if not stamp.exists() or stamp.read_text() != repr(asdict(shape)):
        shutil.rmtree(folder, ignore_errors=True)
        for path in paths:
            path.parent.mkdir(parents=True)
        _make_base(paths[0], folder / "content", shape)
    change, scattered = _offsets(paths[0], shape)
    if not stamp.exists():
        _copy(paths[0], paths[1])
        _write(paths[1], change, RUN, seed=1)
        _copy(paths[1], paths[2])
        _write(paths[2], scattered, BLOCK, seed=2)
        os.sync()
        stamp.write_text(repr(asdict(shape)))
    return Images(paths[0], paths[1], paths[2], shape, change, scattered)


def data_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Yield offset and end of what is allocated in the file."""
    with path.open("rb") as file:
        size = path.stat().st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, at


def make_file_system(image: Path, size: int, content: Path, *options: str) -> None:
    """Make the thin file `image` of `size` bytes with an ext4 that holds the files of the folder `content`."""
    with image.open("xb") as file:
        file.truncate(size)
    fixed = ["-q", "-F", "-U", _UUID, "-E", f"hash_seed={_UUID},lazy_itable_init=0,lazy_journal_init=0"]
    environment = {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "E2FSPROGS_FAKE_TIME": "1",
    }
    subprocess.run(
        ["mkfs.ext4", *fixed, *options, "-d", str(content), str(image)],
        env=environment,
        check=True,
        timeout=_MKFS_SECONDS,
    )


def collect_content(folder: Path, size: int) -> None:
    """Copy files of this machine, `size` bytes in all, into the new `folder`."""
    chosen = sorted(_candidates(), key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    total = 0
    for path in chosen:
        if total >= size:
            return
        target = folder / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        total += target.stat().st_size
    raise SystemExit(f"this machine has only {total / MiB:.0f} MiB of files in {', '.join(map(str, SOURCES))}")


def _make_base(image: Path, content: Path, shape: Shape) -> None:
    collect_content(content, shape.content)
    make_file_system(image, shape.image, content)
    shutil.rmtree(content)


def _candidates() -> Iterator[Path]:
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            for name in names:
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST_FILE:
                    yield path


def _offsets(image: Path, shape: Shape) -> tuple[list[int], list[int]]:
    """Choose where to write, inside of data only: a write into a hole would say nothing about increments."""
    extents = list(data_extents(image))
    chooser = random.Random(shape.image)
    runs = _aligned(extents, RUN)
    blocks = _aligned(extents, BLOCK)
    return sorted(chooser.sample(runs, shape.change // RUN)), sorted(chooser.sample(blocks, shape.scattered))


def _aligned(extents: list[tuple[int, int]], size: int) -> list[int]:
    """Return the aligned offsets of all pieces of `size` bytes that lie wholly in the extents."""
    return [offset for start, end in extents for offset in range(-(-start // size) * size, end - size + 1, size)]


def _write(image: Path, offsets: list[int], size: int, *, seed: int) -> None:
    content = random.Random(seed)
    with image.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(content.randbytes(size))


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True, timeout=_MKFS_SECONDS)
