"""Restores in place: over a real block device, and into an existing file."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError, BusyError, NotFoundError
from lab_backup.targets.device import DeviceTarget
from lab_backup.targets.errors import TargetError
from lab_backup.targets.zeroing import zero_range
from lab_backup.units import KiB, MiB

SIZE = 8 * MiB


def run(*command: str) -> str:
    """Run a tool of the system's, which must succeed, and return what it says."""
    path = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    return subprocess.run(command, check=True, timeout=30, env=path, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return an image file that holds something everywhere."""
    path = tmp_path / "old.raw"
    path.write_bytes(b"o" * SIZE)
    return path


@pytest.fixture
def loop(file: Path) -> Iterator[Path]:
    """Return a block device over that file."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    device = run("losetup", "--find", "--show", str(file)).strip()
    yield Path(device)
    run("losetup", "--detach", device)


@pytest.fixture(params=["file", "loop"])
def place(request: pytest.FixtureRequest) -> Path:
    """Each kind of thing that is overwritten in place."""
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


def test_every_byte_is_replaced(place: Path) -> None:
    """Data and zero runs, aligned or not, replace what was there; the rest behind the disk's end stays."""
    size = SIZE - 64 * KiB
    target = DeviceTarget(place, size)
    target.write(0, b"a" * MiB)
    target.write_zeroes(MiB, 3 * MiB)
    target.write(4 * MiB, memoryview(b"b" * (MiB + 100)))
    target.write_zeroes(5 * MiB + 100, size - 5 * MiB - 100)
    target.finish()
    target.abort()
    zeroes = bytes(size - 5 * MiB - 100)
    assert place.read_bytes() == b"a" * MiB + bytes(3 * MiB) + b"b" * (MiB + 100) + zeroes + b"o" * (64 * KiB)


def test_zeroes_take_no_space_in_a_file(file: Path) -> None:
    """Zeroes become holes, so a thin image stays thin."""
    target = DeviceTarget(file, SIZE)
    target.write_zeroes(0, SIZE)
    target.finish()
    assert file.stat().st_blocks == 0
    assert file.stat().st_size == SIZE


def test_zeroes_where_the_kernel_cannot_punch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hole can be made, zeroes are written, all of them and no more."""
    monkeypatch.setattr("lab_backup.targets.zeroing._PUNCH_HOLE", 1 << 30)  # a mode that no kernel knows
    path = tmp_path / "disk"
    path.write_bytes(b"o" * (3 * MiB))
    with path.open("r+b") as file:
        zero_range(file.fileno(), 1000, 2 * MiB)
    assert path.read_bytes() == b"o" * 1000 + bytes(2 * MiB) + b"o" * (MiB - 1000)


def test_a_small_device_is_refused(place: Path) -> None:
    """A device smaller than the disk is refused, with both sizes, and stays as it was."""
    with pytest.raises(TargetError, match="too small"):
        DeviceTarget(place, SIZE + 1)
    assert place.read_bytes() == b"o" * SIZE


def test_a_mounted_device_is_refused(loop: Path, tmp_path: Path) -> None:
    """The kernel's exclusive open keeps us off a device that has a mounted file system."""
    run("mkfs.ext2", "-q", str(loop))
    mount = tmp_path / "mount"
    mount.mkdir()
    run("mount", str(loop), str(mount))
    try:
        with pytest.raises(BusyError, match="in use"):
            DeviceTarget(loop, SIZE)
    finally:
        run("umount", str(mount))
    DeviceTarget(loop, SIZE).abort()


def test_an_image_that_qemu_has_open_is_refused(file: Path, tmp_path: Path) -> None:
    """The locks that QEMU holds on its images are respected."""
    pid_file = tmp_path / "pid"
    run("qemu-nbd", "--fork", f"--pid-file={pid_file}", "-f", "raw", "-t", "-k", str(tmp_path / "s"), str(file))
    pid = int(pid_file.read_text())
    try:
        with pytest.raises(BusyError, match="in use"):
            DeviceTarget(file, SIZE)
    finally:
        os.kill(pid, 15)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    DeviceTarget(file, SIZE).abort()


def test_qemu_stays_off_while_we_write(file: Path) -> None:
    """An image being restored in place cannot be opened for writing by QEMU."""
    target = DeviceTarget(file, SIZE)
    try:
        write = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(file)]
        attempt = subprocess.run(write, capture_output=True, timeout=30, check=False)
        assert attempt.returncode != 0
        assert b"lock" in attempt.stderr
    finally:
        target.abort()
    assert file.read_bytes() == b"o" * SIZE


def test_links_to_devices_are_followed_and_links_to_files_are_not(place: Path, tmp_path: Path) -> None:
    """Logical volumes are named by links; a link to a file may lead anywhere, so it is refused."""
    link = tmp_path / "link"
    link.symlink_to(place)
    if place.is_block_device():
        DeviceTarget(link, SIZE).abort()
    else:
        with pytest.raises(TargetError, match="symbolic link"):
            DeviceTarget(link, SIZE)


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    """A missing path, a folder, a pipe and a character device are refused without waiting."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFoundError, match="no device or file"):
        DeviceTarget(tmp_path / "none", 0)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(TargetError, match="neither"):
            DeviceTarget(path, 0)


def test_a_device_without_permission(file: Path) -> None:
    """A file that the user may not write counts as refused access."""
    if os.geteuid() == 0:
        run("chattr", "+i", str(file))
    else:
        file.chmod(0o400)
    try:
        with pytest.raises(AccessDeniedError, match="not allowed"):
            DeviceTarget(file, SIZE)
    finally:
        if os.geteuid() == 0:
            run("chattr", "-i", str(file))
