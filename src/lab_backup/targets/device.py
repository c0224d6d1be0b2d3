"""A disk restored in place: over a block device, or into an image file that is to stay the same file."""

import fcntl
import os
import stat
from pathlib import Path

from lab_backup.blocks import Buffer
from lab_backup.errors import NotFoundError
from lab_backup.targets.descriptor import Descriptor
from lab_backup.targets.errors import TargetError, translated
from lab_backup.targets.raw_file import WRITERS
from lab_backup.targets.zeroing import zero_range
from lab_backup.units import format_size


class DeviceTarget:
    """An existing block device or raw image file, overwritten from its first byte. Implements BlockWriter.

    It must be at least as large as the disk; bytes behind the disk's end stay as they are. It is held exclusively: a device that is
    mounted, or part of a volume group or array, and an image that a virtual machine has open, are refused. Names of devices may be
    symbolic links, as those of logical volumes are; names of files may not.
    """

    writers = WRITERS

    def __init__(self, path: Path, size: int) -> None:
        """Open `path` for a disk of `size` bytes without changing it. Raises BusyError, NotFoundError, TargetAccessError, TargetError."""
        self.path = path
        with translated(path):
            try:
                kind = path.stat().st_mode
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"there is no device or file {path}", hint="an in-place restore needs one that exists"
                ) from error
            if not (stat.S_ISBLK(kind) or stat.S_ISREG(kind)):
                raise TargetError(f"{path} is neither a block device nor a file", hint="name one of these")
            # O_EXCL without O_CREAT: the kernel refuses a block device that is in use, open(2).
            flags = os.O_EXCL if stat.S_ISBLK(kind) else os.O_NOFOLLOW
            self._file = Descriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | flags))
            try:
                self._check(kind, size)
            except BaseException:
                self._file.close()
                raise

    def _check(self, kind: int, size: int) -> None:
        with self._file as number:
            if stat.S_IFMT(os.fstat(number).st_mode) != stat.S_IFMT(kind):
                raise TargetError(f"{self.path} was replaced while it was opened", hint="try again")
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # QEMU holds locks on the images that it has open
            length = os.lseek(number, 0, os.SEEK_END)
        if length < size:
            raise TargetError(
                f"{self.path} is too small: the disk has {format_size(size)} ({size} bytes), this has {format_size(length)} ({length})",
                hint="name a larger device, or restore into a new file",
            )

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`."""
        with translated(self.path):
            self._file.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Wipe `length` bytes from `offset`; on thin volumes and files they give their space back."""
        with translated(self.path), self._file as number:
            zero_range(number, offset, length)

    def finish(self) -> None:
        """Make everything durable and let go of the device."""
        with translated(self.path):
            with self._file as number:
                os.fsync(number)
            self._file.close()

    def abort(self) -> None:
        """Let go of the device; it holds a mixture of the old and the new content."""
        self._file.close()
