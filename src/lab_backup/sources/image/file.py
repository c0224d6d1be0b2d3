"""An image file or block device, open for reading, and whether it stays as it was."""

import os
import stat
from pathlib import Path

from lab_backup.errors import AccessDeniedError, NotFoundError, UsageError
from lab_backup.sources.image.errors import ImageChangedError, ImageReadError


class ImageFile:
    """Open for reading; closes with `close`.

    Raises NotFoundError, AccessDeniedError, UsageError where `path` is neither a file nor a block device.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, following symbolic links."""
        self.path = path
        # O_NONBLOCK: a named pipe must be refused, not waited for; files and block devices ignore it
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFoundError(f"image {path} does not exist", hint="check the path") from error
        except PermissionError as error:
            raise AccessDeniedError(f"no permission to read image {path}", hint="run as root") from error
        except OSError as error:
            raise ImageReadError(f"image {path} cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(self.fd)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a block device"
                raise UsageError(f"{path} is {kind}", hint="name an image file or a block device")
            self.is_device = stat.S_ISBLK(status.st_mode)
            self.device = status.st_rdev
            self.identity = f"device:{self.device}" if self.is_device else f"file:{status.st_dev}:{status.st_ino}"
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
            self._modified = status.st_mtime_ns
        except BaseException:
            os.close(self.fd)
            raise

    def read_start(self, count: int) -> bytes:
        """Return the first `count` bytes, or fewer where the image is shorter."""
        data = bytearray()
        while len(data) < count and (part := os.pread(self.fd, count - len(data), len(data))):
            data += part
        return bytes(data)

    def check(self) -> None:
        """Raise ImageChangedError if size or time of modification are not what they were when it was opened.

        The time of a device says nothing about its content, so only its size counts.
        """
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if size != self.size:
            raise ImageChangedError(
                f"image {self.path} changed from {self.size} to {size} bytes while it was backed up",
                hint="make sure that nothing resizes it, then back it up again",
            )
        if not self.is_device and os.fstat(self.fd).st_mtime_ns != self._modified:
            raise ImageChangedError(
                f"image {self.path} was written to while it was backed up",
                hint="stop what uses it, then back it up again; a running VM is backed up with: lab-backup backup vm",
            )

    def close(self) -> None:
        """Close it. May be called several times."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
