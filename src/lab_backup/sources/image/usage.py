"""Who on this host uses a block device or a file, as far as the kernel tells."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_SYS_BLOCK = Path("/sys/dev/block")


def mounts_for_writing(device: int) -> list[str]:
    """Return where `device`, a partition of it, or a volume on top of it is mounted for writing."""
    numbers = set(_stacked(device, set()))
    places = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        place, _, file_system = line.partition(" - ")
        fields, source = place.split(), file_system.split()
        if len(fields) < 6 or len(source) < 3:
            continue
        writable = "rw" in fields[5].split(",") and "rw" in source[2].split(",")
        if writable and (_number(fields[2]) in numbers or _device_at(source[1]) in numbers):
            places.append(fields[4])
    return places


def is_claimed(path: Path) -> bool:
    """Tell whether the kernel uses the block device at `path` exclusively: mounted, swap, LVM, RAID."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def loop_devices_for_writing(path: Path) -> list[str]:
    """Return the loop devices through which the file at `path` can be written."""
    target = str(path.resolve())
    devices = []
    for entry in Path("/sys/block").glob("loop*"):
        try:
            backing = (entry / "loop" / "backing_file").read_text().rstrip("\n")
            read_only = (entry / "ro").read_text().strip() == "1"
        except OSError:
            continue  # not set up
        if backing == target and not read_only:
            devices.append(f"/dev/{entry.name}")
    return sorted(devices)


def _stacked(device: int, seen: set[int]) -> Iterator[int]:
    """Yield `device`, its partitions, and whatever the device mapper or RAID built on them."""
    if device in seen:
        return
    seen.add(device)
    yield device
    home = _SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"
    for entry in [*home.glob("*/partition"), *home.glob("holders/*/dev")]:
        try:
            yield from _stacked(_number((entry.parent / "dev").read_text().strip()), seen)
        except OSError:
            continue  # it went away while we looked


def _number(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


def _device_at(source: str) -> int | None:
    """Return the number of the device that a mount names; btrfs mounts have another one of their own."""
    try:
        status = Path(source).stat() if source.startswith("/dev/") else None
    except OSError:
        return None
    return status.st_rdev if status is not None and stat.S_ISBLK(status.st_mode) else None
