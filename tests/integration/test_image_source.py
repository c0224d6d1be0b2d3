"""Images as sources: real files, real qemu-nbd, real loop devices."""

import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError, BusyError, NotFoundError, UsageError
from lab_backup.extent import Extent, total
from lab_backup.nbd.server import QemuNbd
from lab_backup.sources.image.errors import ImageChangedError, ImageReadError, UnsafeImageError
from lab_backup.sources.image.source import ImageSource, open_image
from lab_backup.sources.source import Consistency, DiskExport, OpenSource
from lab_backup.units import GiB, KiB, MiB
from support.waiting import has_ended, wait_until


def run(*command: str | Path) -> str:
    """Run a program and return what it says."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def content(disk: DiskExport) -> bytes:
    """Return the disk put together from its extents, as the engine does it."""
    data = bytearray(disk.reader.size)
    at = 0
    for extent in disk.changed():
        assert extent.offset == at, "gap or overlap"
        at = extent.end
        if not extent.zero:
            disk.reader.read_into(extent.offset, memoryview(data)[extent.offset : extent.end])
    assert at == disk.reader.size
    return bytes(data)


def sparse_content(size: int, seed: int = 1) -> dict[int, bytes]:
    """Return some pieces of random data for a disk of `size` bytes."""
    generator = random.Random(seed)
    return {offset: generator.randbytes(100_000) for offset in (0, 3 * MiB + 512, size - 200_000)}


def write_raw(path: Path, size: int, pieces: dict[int, bytes]) -> bytes:
    """Make a sparse raw image; return what it holds."""
    whole = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
            whole[offset : offset + len(data)] = data
    return bytes(whole)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Make a sparse raw image of 8 MiB."""
    path = tmp_path / "disk.raw"
    write_raw(path, 8 * MiB, sparse_content(8 * MiB))
    return path


@pytest.fixture
def loop(raw: Path) -> Iterator[Path]:
    """Attach the raw image to a loop device."""
    device = run("losetup", "--find", "--show", raw).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


def test_a_raw_file_is_read_whole_and_its_holes_are_not(raw: Path) -> None:
    """Content is exact; the holes of the file system are known as zeroes."""
    with open_image(raw) as source:
        (disk,) = source.disks
        assert content(disk) == raw.read_bytes()
        assert total(disk.changed(), zero=True) > 7 * MiB
        assert (disk.format, disk.incremental, disk.full_reason, disk.checkpoint) == ("raw", False, None, None)
        source.check()
        source.commit()


def test_a_source_tells_what_it_is(raw: Path) -> None:
    """Kind, id, name, host and consistency are what the catalogue needs, and the type is that of every source."""
    with open_image(raw) as image:
        source: OpenSource = image
        assert (source.kind, source.name, source.source_id) == ("image", str(raw), f"image:{raw}")
        assert (source.host, source.consistency) == (socket.gethostname(), Consistency.OFFLINE)
        assert (source.configuration, source.warnings, source.notes) == ([], [], [])
    with open_image(raw, name="web-root") as source:
        assert (source.name, source.source_id) == ("web-root", "image:web-root")


def test_the_name_is_that_of_the_file_a_link_leads_to(raw: Path, tmp_path: Path) -> None:
    """Two ways to one image are one source."""
    link = tmp_path / "link.raw"
    link.symlink_to(raw)
    with open_image(link) as source:
        assert source.source_id == f"image:{raw}"


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused(raw: Path, name: str) -> None:
    """A name is printable."""
    with pytest.raises(UsageError):
        open_image(raw, name=name)


@pytest.mark.parametrize("size", [0, 1, 511, 513, 65536 + 7, MiB + 1])
def test_odd_sizes_are_kept_to_the_byte(tmp_path: Path, size: int) -> None:
    """An image need not be a multiple of a sector; even an empty one is an image."""
    path = tmp_path / "odd.img"
    path.write_bytes(random.Random(size).randbytes(size))
    with open_image(path) as source:
        (disk,) = source.disks
        assert disk.reader.size == size
        assert content(disk) == path.read_bytes()


def test_a_huge_sparse_file_costs_nothing(tmp_path: Path) -> None:
    """64 GiB with two pieces of data are mapped at once, and lazily."""
    path = tmp_path / "huge.raw"
    with path.open("wb") as file:
        file.truncate(64 * GiB)
        for offset in (10 * GiB, 50 * GiB):
            file.seek(offset)
            file.write(b"data")
    with open_image(path) as source:
        (disk,) = source.disks
        extents = disk.reader.extents()
        assert next(extents) == Extent(0, 10 * GiB, zero=True)
        rest = list(extents)
        assert total(rest, zero=False) <= 2 * 64 * KiB
        assert rest[-1].end == 64 * GiB


def test_threads_read_a_raw_image_at_once(raw: Path) -> None:
    """`readers` threads may read different places at the same time."""
    expected = raw.read_bytes()
    with open_image(raw) as source:
        reader = source.disks[0].reader
        assert reader.readers == len(os.sched_getaffinity(0))
        got = bytearray(len(expected))

        def read(number: int) -> None:
            for at in range(number * 64 * KiB, len(got), 4 * 64 * KiB):
                reader.read_into(at, memoryview(got)[at : at + 64 * KiB])

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == expected


def test_reading_past_the_end_is_an_error(raw: Path) -> None:
    """A reader never returns less than it was asked for."""
    with open_image(raw) as source, pytest.raises(ImageChangedError):
        source.disks[0].reader.read_into(8 * MiB - 10, memoryview(bytearray(20)))


def test_missing_paths_and_odd_files_are_told_apart(tmp_path: Path) -> None:
    """What is no image is named, and nothing waits for a named pipe."""
    with pytest.raises(NotFoundError, match="nowhere"):
        open_image(tmp_path / "nowhere.raw")
    with pytest.raises(UsageError, match="directory"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither"):
        open_image(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither"):
        open_image(Path("/dev/zero"))
    with pytest.raises(UsageError, match="vmdk"):
        open_image(tmp_path, format="vmdk")


def test_no_permission_is_said(raw: Path) -> None:
    """A user who may not read the image learns just that."""
    raw.chmod(0)
    user = os.geteuid()
    os.seteuid(65534)
    try:
        with pytest.raises(AccessDeniedError, match=r"disk\.raw"):
            open_image(raw, name="x")
    finally:
        os.seteuid(user)


def make_qcow2(path: Path, size: int, pieces: dict[int, bytes], *options: str) -> Path:
    """Make a qcow2 image that holds `pieces`."""
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size))
    with QemuNbd(path, "qcow2", read_only=False) as server, server.connect() as client:
        for offset, data in pieces.items():
            client.write(offset, data)
        client.flush()
    return path


def test_a_qcow2_file_is_read_as_the_guest_sees_it(tmp_path: Path, raw: Path) -> None:
    """Unallocated clusters are zeroes that nobody reads; the rest is exact."""
    image = make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, sparse_content(8 * MiB))
    with open_image(image) as source:
        (disk,) = source.disks
        assert disk.format == "qcow2"
        assert content(disk) == raw.read_bytes()
        assert total(disk.changed(), zero=True) > 7 * MiB
        assert disk.reader.readers == 1
        source.check()


def test_a_backing_chain_is_flattened_and_reported(tmp_path: Path, raw: Path) -> None:
    """Relative and absolute backing files with a named format are read through, and the user learns of each."""
    base = raw.rename(tmp_path / "base.raw")
    expected = bytearray(base.read_bytes())
    middle = make_qcow2(tmp_path / "middle.qcow2", 8 * MiB, {}, "-b", "base.raw", "-F", "raw")
    top = make_qcow2(tmp_path / "top.qcow2", 8 * MiB, {MiB: b"top"}, "-b", str(middle), "-F", "qcow2")
    expected[MiB : MiB + 3] = b"top"
    with open_image(top) as source:
        assert content(source.disks[0]) == expected
        assert [str(middle) in source.notes[0], str(base) in source.notes[1]] == [True, True]


def test_a_missing_backing_file_is_named(tmp_path: Path) -> None:
    """The error names the file that is missing, not only the one that was asked for."""
    image = tmp_path / "top.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "gone.raw", "-F", "raw", image, "8M")
    with pytest.raises(NotFoundError, match=r"gone\.raw"):
        open_image(image)


@pytest.mark.parametrize(
    "options",
    [
        ["-b", "nbd://host/export", "-F", "raw"],
        ["-b", 'json:{"driver":"null-co"}', "-F", "raw"],
        ["-b", "base.vmdk", "-F", "vmdk"],
    ],
)
def test_backing_files_that_are_not_plain_local_images_are_refused(tmp_path: Path, options: list[str]) -> None:
    """A header cannot send us to another host or to another driver."""
    image = tmp_path / "top.qcow2"
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, image, "8M")
    with pytest.raises(UnsafeImageError):
        open_image(image)


def test_a_backing_file_without_a_format_is_never_probed(tmp_path: Path, raw: Path) -> None:
    """QEMU would guess the format from what a guest wrote; we refuse and say what to do."""
    image = tmp_path / "top.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", image)
    named = image.read_bytes()
    image.write_bytes(named.replace(struct.pack(">I", 0xE2792ACA), struct.pack(">I", 0x12345678)))
    with pytest.raises(UnsafeImageError, match="no named format") as caught:
        open_image(image)
    assert "rebase" in str(caught.value.hint)


def test_a_chain_that_goes_in_a_circle_is_refused(tmp_path: Path) -> None:
    """A backing file that leads back ends in an error, not in a loop."""
    first, second = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    for image, backing in ((first, second), (second, first)):
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", str(backing), "-F", "qcow2", image, "8M")
    with pytest.raises(UnsafeImageError, match="circle"):
        open_image(first)


def test_a_data_file_is_part_of_the_image(tmp_path: Path) -> None:
    """A qcow2 image with its data in another file is read through it."""
    data_file = tmp_path / "data.raw"
    image = make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, {MiB: b"there"}, "-o", f"data_file={data_file}")
    with open_image(image) as source:
        assert content(source.disks[0])[MiB : MiB + 5] == b"there"
        assert str(data_file) in source.notes[0]


def test_what_a_guest_wrote_is_never_taken_for_a_format(tmp_path: Path) -> None:
    """A raw disk on which a guest put a qcow2 header that names a file of the host is copied byte by byte."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret of the host" * 1000)
    disk = tmp_path / "disk.img"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", disk, "1M")
    with open_image(disk) as source:
        assert source.disks[0].format == "raw"
        got = content(source.disks[0])
        assert got == disk.read_bytes()
        assert b"secret of the host" not in got
        assert "--format qcow2" in source.notes[0]


def test_a_name_alone_makes_no_qcow2(tmp_path: Path, raw: Path) -> None:
    """A file named .qcow2 that is none is read as raw, with a note; asked for as qcow2 it is refused."""
    named = raw.rename(tmp_path / "named.qcow2")
    with open_image(named) as source:
        assert source.disks[0].format == "raw"
        assert "read as raw" in source.notes[0]
    with pytest.raises(UnsafeImageError, match="not in qcow2 format"):
        open_image(named, format="qcow2")


def test_the_format_that_was_said_prevails(tmp_path: Path) -> None:
    """`format` opens a qcow2 file of any name, and takes a .qcow2 file for what it is on disk."""
    image = make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, {0: b"guest"})
    with open_image(image, format="raw") as source:
        assert content(source.disks[0]) == image.read_bytes()
    odd = image.rename(tmp_path / "disk:with=odd,name %s.img")
    with open_image(odd, format="qcow2") as source:
        assert content(source.disks[0])[:5] == b"guest"


def test_internal_snapshots_are_mentioned(tmp_path: Path) -> None:
    """The user learns that internal snapshots are left out."""
    image = make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, {})
    run("qemu-img", "snapshot", "-c", "before", image)
    with open_image(image) as source:
        assert "1 internal snapshots" in source.notes[0]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_an_image_that_a_vm_writes_is_busy(tmp_path: Path, image_format: str) -> None:
    """An image that QEMU has open for writing is refused with the way out; when QEMU is gone it is read."""
    image = tmp_path / f"disk.{image_format}"
    run("qemu-img", "create", "-q", "-f", image_format, image, "8M")
    with QemuNbd(image, image_format, read_only=False), pytest.raises(BusyError, match="in use") as caught:
        open_image(image)
    assert "shut" in str(caught.value.hint)
    with open_image(image) as source:
        assert content(source.disks[0]) == bytes(8 * MiB)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_vm_cannot_start_on_an_image_that_is_read(tmp_path: Path, image_format: str) -> None:
    """While we read, QEMU gets no write lock, but may read as well."""
    image = tmp_path / f"disk.{image_format}"
    run("qemu-img", "create", "-q", "-f", image_format, image, "8M")
    with open_image(image):
        with pytest.raises(BusyError), QemuNbd(image, image_format, read_only=False):
            pass
        with QemuNbd(image, image_format):
            pass
    with QemuNbd(image, image_format, read_only=False):
        pass


def test_a_write_lock_of_any_program_counts(raw: Path) -> None:
    """A program that locks the whole file the POSIX way is respected."""
    with raw.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        script = f"from pathlib import Path; from lab_backup.sources.image.source import open_image; open_image(Path({str(raw)!r}))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "BusyError" in done.stderr


def test_a_write_during_the_backup_is_noticed(raw: Path) -> None:
    """`check` raises when anything wrote to the file after it was opened."""
    with open_image(raw) as source:
        source.check()
        time.sleep(0.02)  # more than the grain of the file system's clock
        with raw.open("r+b") as file:
            file.write(b"changed")
        with pytest.raises(ImageChangedError, match="written"):
            source.check()


@pytest.mark.parametrize("change", [-512, 512])
def test_a_resize_during_the_backup_is_noticed(raw: Path, change: int) -> None:
    """`check` raises when the file grew or shrank."""
    with open_image(raw) as source:
        os.truncate(raw, 8 * MiB + change)
        with pytest.raises(ImageChangedError, match="changed from"):
            source.check()


def test_a_write_to_a_backing_file_is_noticed(tmp_path: Path, raw: Path) -> None:
    """All files of a chain are watched, not only the last one."""
    top = make_qcow2(tmp_path / "top.qcow2", 8 * MiB, {}, "-b", str(raw), "-F", "raw")
    with open_image(top) as source:
        time.sleep(0.02)
        with raw.open("r+b") as file:
            file.write(b"changed")
        with pytest.raises(ImageChangedError, match=r"disk\.raw"):
            source.check()


def qemu_nbd_of(source: ImageSource) -> QemuNbd:
    """Return what serves the image."""
    assert source._opened.server is not None
    return source._opened.server


def test_a_lost_qemu_nbd_is_noticed(tmp_path: Path) -> None:
    """`check` raises when the process that reads a qcow2 image was killed."""
    with open_image(make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, {})) as source:
        server = qemu_nbd_of(source)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.alive)
        with pytest.raises(ImageReadError, match="qemu-nbd"):
            source.check()


def open_files() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open(tmp_path: Path, raw: Path) -> None:
    """After the context, and after a refusal, there are as many open files as before, and no process."""
    image = make_qcow2(tmp_path / "top.qcow2", 8 * MiB, {}, "-b", str(raw), "-F", "raw")
    before = open_files()
    with open_image(image) as source:
        pid = qemu_nbd_of(source).pid
    assert has_ended(pid)
    with QemuNbd(image, "qcow2", read_only=False), pytest.raises(BusyError):
        open_image(image)
    assert open_files() == before


def test_a_device_is_raw_whatever_it_holds(tmp_path: Path) -> None:
    """A block device is read byte by byte, even if it begins like a qcow2 image and is named like one."""
    image = make_qcow2(tmp_path / "disk.qcow2", 8 * MiB, {0: b"guest"})
    os.truncate(image, MiB)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        link = tmp_path / "device.qcow2"
        link.symlink_to(device)
        with open_image(link) as source:
            (disk,) = source.disks
            assert (disk.format, disk.reader.size) == ("raw", MiB)
            assert content(disk) == image.read_bytes()
            assert source.warnings == []
    finally:
        run("losetup", "--detach", device)


def test_a_device_mounted_for_writing_is_a_warning(loop: Path, tmp_path: Path) -> None:
    """The user learns where a device is mounted; a read-only mount is none of our business, nor of the level."""
    run("mkfs.ext4", "-q", "-F", loop)
    place = tmp_path / "mounted"
    place.mkdir()
    run("mount", loop, place)
    try:
        with open_image(loop) as source:
            assert str(place) in source.warnings[0]
            assert source.consistency is Consistency.CRASH
    finally:
        run("umount", place)
    run("mount", "-o", "ro", loop, place)
    try:
        with open_image(loop) as source:
            assert [str(place) in warning for warning in source.warnings] == [False]
    finally:
        run("umount", place)


def test_a_file_behind_a_loop_device_is_a_warning(loop: Path, raw: Path) -> None:
    """A file that can be written through a loop device is not surely at rest."""
    with open_image(raw) as source:
        assert str(loop) in source.warnings[0]


def test_a_device_that_the_kernel_uses_is_a_warning(loop: Path) -> None:
    """A device that is claimed exclusively, as LVM and RAID do it, is not surely at rest."""
    claim = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        with open_image(loop) as source:
            assert "in use by the kernel" in source.warnings[0]
    finally:
        os.close(claim)
    with open_image(loop) as source:
        assert source.warnings == []
