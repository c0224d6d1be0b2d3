"""One regular file being filled."""

import os
from pathlib import Path
from threading import Lock

from lab_backup.blocks import Buffer
from lab_backup.targets.files.errors import naming


class FileWriter:
    """A new file; what is not written to it stays a hole. It ends where the last `write` or `write_zeroes` ended.

    Calls may come from several threads and in any order, as long as their ranges do not overlap.
    """

    def __init__(self, folder: Path, path: bytes, number: int) -> None:
        """Write to the open descriptor `number`, which stays its owner's; `folder` and `path` are for messages."""
        self._folder = folder
        self._path = path
        self._number = number
        self._lock = Lock()
        self._end = 0

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`. Raises TargetFullError and other TargetErrors."""
        with naming(self._folder, self._path), memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._number, view[done:], offset + done)
        self._reach(offset + done)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Leave the hole that is there, `length` bytes from `offset`."""
        self._reach(offset + length)

    def _reach(self, end: int) -> None:
        with self._lock:
            self._end = max(self._end, end)

    def end(self) -> None:
        """Give the file its length. Raises TargetError where the file system holds no file so large."""
        with naming(self._folder, self._path):
            os.ftruncate(self._number, self._end)
