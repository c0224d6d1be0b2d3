"""Reading a finished image file again, to see that the disk holds what was written."""

import os
from collections.abc import Iterable
from pathlib import Path

from lab_backup.blocks import Buffer
from lab_backup.qcow2.layout import CLUSTER, Layout
from lab_backup.targets.errors import TargetError, translated


def check_image(path: Path, pieces: Iterable[tuple[int, Buffer]], layout: Layout | None) -> None:
    """Compare the image at `path` with `pieces`, what the disk should hold at which offset; raw where `layout` is None.

    The file is read from the device, not from memory, where the kernel lets go of it. Raises TargetError at the first difference.
    """
    with translated(path):
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            if layout is not None:
                for index, table in enumerate(layout.stream(0, layout.data_offset)):
                    if isinstance(table, bytes):
                        _compare(number, path, index * CLUSTER, table)
            for offset, data in pieces:
                place = offset if layout is None else layout.host_offset(offset, memoryview(data).nbytes)
                _compare(number, path, place, data)
        finally:
            os.close(number)


def _compare(number: int, path: Path, offset: int, data: Buffer) -> None:
    expected = memoryview(data).cast("B")
    at = 0
    while at < len(expected):
        found = os.pread(number, len(expected) - at, offset + at)
        if not found or found != expected[at : at + len(found)]:
            raise TargetError(
                f"{path} does not hold at byte {offset + at} what was written there",
                hint="the disk below it, or this machine's memory, is failing",
            )
        at += len(found)
