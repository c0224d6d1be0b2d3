"""Images laid out by us, judged by qemu-img."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from lab_backup.extent import Extent
from lab_backup.qcow2.layout import CLUSTER, Layout
from lab_backup.units import GiB, KiB, MiB, TiB

CHUNK = 128 * KiB


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img and return what it says; a failure is the test's."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)  # noqa: S607 - as PATH has it
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_disk(path: Path, size: int, extents: list[Extent], seed: int) -> None:
    """Make a raw disk with random bytes in those places and holes elsewhere."""
    content = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for extent in extents:
            os.pwrite(file.fileno(), content.randbytes(extent.length), extent.offset)


def write_image(path: Path, raw: Path, layout: Layout) -> None:
    """Write the image front to back, data from the raw disk."""
    with path.open("wb") as image, raw.open("rb") as disk:
        for part in layout.stream():
            if isinstance(part, bytes):
                image.write(part)
            else:
                image.write(os.pread(disk.fileno(), part.length, part.offset).ljust(part.length, b"\0"))
        assert image.tell() == layout.file_size


def judge(tmp_path: Path, size: int, extents: list[Extent], seed: int = 0) -> None:
    """Check that the image is without fault, and that its disk is the raw one and zeroes after it."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    write_disk(raw, size, extents, seed)
    layout = Layout(size, extents)
    write_image(image, raw, layout)
    check = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image))
    assert check["check-errors"] == 0
    assert not check.keys() & {"corruptions", "leaks"}
    assert check["image-end-offset"] == layout.file_size
    assert json.loads(qemu_img("info", "--output=json", image))["virtual-size"] == layout.virtual_size
    os.truncate(raw, layout.virtual_size)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)


@pytest.mark.parametrize("seed", range(12))
def test_random_maps_make_clean_images(tmp_path: Path, seed: int) -> None:
    """Whatever the allocation and the size, qemu-img finds no fault and the content of the raw disk."""
    choice = random.Random(seed)
    size = choice.randrange(1, 2 * GiB)
    starts = sorted(choice.sample(range(-(-size // CHUNK)), k=min(choice.randrange(200), -(-size // CHUNK))))
    judge(tmp_path, size, [Extent(start * CHUNK, min(CHUNK, size - start * CHUNK)) for start in starts], seed)


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 513, 1000, CLUSTER - 1, CLUSTER, CLUSTER + 1, 5 * MiB + 777, 512 * MiB, 512 * MiB + 1]
)
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "data"])
def test_odd_and_empty_disks(tmp_path: Path, size: int, empty: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Sizes around every border, with no data and with data at both ends, make clean images."""
    ends = (
        []
        if empty or not size
        else [Extent(0, min(CHUNK, size)), Extent(size - 1 - (size - 1) % CHUNK, (size - 1) % CHUNK + 1)]
    )
    judge(tmp_path, size, ends if len(ends) < 2 or ends[1].offset else ends[:1])


@pytest.mark.parametrize("size", [64 * GiB, 10 * TiB], ids=["64 GiB", "10 TiB"])
def test_huge_thin_disks(tmp_path: Path, size: int) -> None:
    """A few chunks scattered over a huge disk make a clean image that holds little more than them."""
    starts = sorted(random.Random(1).sample(range(size // CHUNK), k=100))
    extents = [Extent(start * CHUNK, CHUNK) for start in starts]
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    write_disk(raw, size, extents, 1)
    write_image(image, raw, Layout(size, extents))
    assert '"check-errors": 0' in qemu_img("check", "--output=json", image)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)
    assert image.stat().st_size < 100 * (CHUNK + CLUSTER) + 2 * MiB


def test_more_than_one_refcount_block(tmp_path: Path) -> None:
    """An image of over 2 GiB needs several blocks of reference counts; its metadata is clean although the data is a hole."""
    size = 5 * GiB
    layout = Layout(size, [Extent(0, size)])
    image = tmp_path / "disk.qcow2"
    with image.open("wb") as file:
        for part in layout.stream(0, layout.data_offset):
            assert isinstance(part, bytes)
            file.write(part)
        file.truncate(layout.file_size)
    check = json.loads(qemu_img("check", "--output=json", image))
    assert check["check-errors"] == 0
    assert check["allocated-clusters"] == size // CLUSTER


def test_qemu_writes_into_our_image(tmp_path: Path) -> None:
    """QEMU allocates new clusters and a bitmap in the image, and it stays without fault."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    write_disk(raw, GiB, [Extent(0, CHUNK)], 2)
    write_image(image, raw, Layout(GiB, [Extent(0, CHUNK)]))
    qemu_img("bitmap", "--add", image, "mark")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 600M 1M", str(image)]
    subprocess.run(write, check=True, timeout=60, capture_output=True)
    check = json.loads(qemu_img("check", "--output=json", image))
    assert not check.keys() & {"corruptions", "leaks"}
