"""A file that appears under its name only when it is whole, and never in the place of another."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lab_backup.blocks import Buffer
from lab_backup.targets.descriptor import Descriptor
from lab_backup.targets.errors import TargetError, TargetFullError, exists, translated

_UNNAMED = os.O_TMPFILE
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}  # open(2): network file systems, FUSE
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Owner(NamedTuple):
    """User and group ids of a file."""

    uid: int
    gid: int


def check_space(folder: Path, needed: int) -> None:
    """Raise TargetFullError if the file system of `folder` has less than `needed` bytes free, where it tells."""
    with translated(folder):
        space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if space.f_blocks and free < needed:
        raise TargetFullError(folder, needed=needed, free=free)


class NewFile:
    """A file being written by any number of threads, which has no name until `publish`: killing the process leaves nothing of it.

    Where the file system knows no unnamed files it has a hidden name beside its final one, `.NAME.XXXX.part`. A symbolic link at the final name, dangling or not, counts as something that is there. Names are looked up in the folder as it was
    opened, so a folder that is swapped meanwhile is not written to.
    """

    def __init__(self, path: Path, *, needed: int, owner: Owner | None = None, mode: int = 0o600) -> None:
        """Make the unnamed file for `path`, after a look at whether `needed` bytes are free; it will belong to `owner` (None: to us).

        Raises TargetExistsError, TargetFullError, TargetAccessError, TargetError; then nothing was made.
        """
        self.path = path
        if path.name in {"", "..", "."}:
            raise TargetError(f"{path} is not the name of a file", hint="name the file that should be made")
        if os.path.lexists(path):
            raise exists(path)
        if needed:
            check_space(path.parent, needed)
        self._hidden: str | None = None
        self._published = False
        with translated(path):
            self._folder = Descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                with self._folder as folder:
                    self._file = Descriptor(self._open(folder, mode))
            except BaseException:
                self._folder.close()
                raise
            try:
                self._file.bypass_cache()
                self._take_identity(owner, mode)
            except BaseException:
                self.discard()
                raise

    def _open(self, folder: int, mode: int) -> int:
        try:
            return os.open(".", os.O_RDWR | _UNNAMED | os.O_CLOEXEC, mode, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
        hidden = f".{self.path.name[:60]}.{secrets.token_hex(6)}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        number = os.open(hidden, flags, mode, dir_fd=folder)
        self._hidden = hidden
        return number

    def _take_identity(self, owner: Owner | None, mode: int) -> None:
        with self._file as number:
            if owner is not None:
                os.fchown(number, *owner)
            os.fchmod(number, mode)  # whatever the umask is
            status = os.fstat(number)
            self._identity = (status.st_dev, status.st_ino)

    def truncate(self, size: int) -> None:
        """Set the file's length; what lies beyond what was written is a hole."""
        with translated(self.path), self._file as number:
            os.ftruncate(number, size)

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`. Raises TargetFullError among others."""
        with translated(self.path):
            self._file.write(offset, data)

    def publish(self) -> None:
        """Make the file durable and give it its name. Raises TargetExistsError where something took the name meanwhile."""
        with translated(self.path):
            with self._file as number, self._folder as folder:
                if self._published:
                    raise ValueError("published twice")
                os.fsync(number)
                self._name(number, folder)
                self._hidden = None
                self._published = True
                os.fsync(folder)
            self._close()

    def _name(self, number: int, folder: int) -> None:
        if self._hidden is None:
            # linkat(2) names this way as the one to give an unnamed file its name without privileges.
            os.link(f"/proc/self/fd/{number}", self.path.name, dst_dir_fd=folder, follow_symlinks=True)
            return
        try:
            os.link(self._hidden, self.path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # The empty file claims the name, so what the rename replaces is our own.
            os.close(os.open(self.path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))
            os.rename(self._hidden, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.unlink(self._hidden, dir_fd=folder)

    def discard(self) -> None:
        """Remove the file, also when it was published, unless something else has its name by now. May be called several times."""
        hidden, self._hidden = self._hidden, None
        published, self._published = self._published, False
        with translated(self.path), suppress(FileNotFoundError):
            try:
                if hidden is not None:
                    with self._folder as folder:
                        os.unlink(hidden, dir_fd=folder)
                elif published and self._is_ours(self.path.lstat()):
                    self.path.unlink()
            finally:
                self._close()

    def _is_ours(self, status: os.stat_result) -> bool:
        return stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) == self._identity

    def _close(self) -> None:
        self._file.close()
        self._folder.close()
