"""The folder that a tree is restored into: a new one, or one that is there and empty."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from lab_backup.inode import sync_file_system
from lab_backup.targets.errors import TargetError, exists, translated
from lab_backup.targets.files.removal import empty

_PRIVATE = 0o700  # nobody else goes in before everything has its owner and mode
_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_NO_LIST = {errno.ENODATA, errno.EOPNOTSUPP}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RootFolder:
    """Open for a restore, and private until the restored tree says otherwise. `number` is its descriptor."""

    def __init__(self, path: Path) -> None:
        """Make `path`, or take it if it is an empty folder. Raises TargetExistsError, TargetAccessError, TargetError; then nothing was changed."""
        self.path = path = path.absolute()
        if path.name in {"", ".."}:
            raise TargetError(f"{path} is not the name of a folder", hint="name a new or empty folder")
        with translated(path):
            self._parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.made = self._make()
                self.number = self._open()
            except BaseException:
                os.close(self._parent)
                raise
        try:
            with translated(path):
                self._before = os.fstat(self.number)
                self._lists = self._take_lists()
                if not self.made:
                    os.fchmod(self.number, _PRIVATE)
        except BaseException:
            self._undo_and_close()
            raise

    def _make(self) -> bool:
        with suppress(FileExistsError):
            os.mkdir(self.path.name, _PRIVATE, dir_fd=self._parent)
            return True
        return False

    def _open(self) -> int:
        status = os.stat(self.path.name, dir_fd=self._parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise exists(self.path)
        number = os.open(self.path.name, _FOLDER, dir_fd=self._parent)
        try:
            with os.scandir(number) as entries:
                if next(entries, None) is not None:
                    raise exists(self.path)
        except BaseException:
            os.close(number)
            raise
        return number

    def _take_lists(self) -> dict[str, bytes]:
        """Remove the folder's access control lists, which what is made in it would inherit, and return them."""
        found = {}
        for name in _LISTS:
            try:
                found[name] = os.getxattr(self.number, name)
                os.removexattr(self.number, name)
            except OSError as error:
                if error.errno not in _NO_LIST:
                    raise
        return found

    def _undo_and_close(self) -> None:
        with suppress(OSError):
            if self.made:
                os.rmdir(self.path.name, dir_fd=self._parent)
        self.close()

    def restore_mode(self) -> None:
        """Give the folder, if it was there before, the mode and access control lists that it had. Raises OSError."""
        if self.made:
            return
        for name, value in self._lists.items():
            os.setxattr(self.number, name, value)
        os.fchmod(self.number, stat.S_IMODE(self._before.st_mode))

    def sync(self) -> None:
        """Make the folder and all that is in it durable. Raises OSError."""
        sync_file_system(self.number)
        parent = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._parent)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def clear(self) -> None:
        """Remove everything in it, and itself if it was made. Raises OSError."""
        with suppress(PermissionError):
            os.fchown(self.number, self._before.st_uid, self._before.st_gid)
        os.fchmod(self.number, _PRIVATE)
        empty(self.number)
        self.restore_mode()
        if self.made:
            with suppress(FileNotFoundError):
                os.rmdir(self.path.name, dir_fd=self._parent)

    def close(self) -> None:
        """Let go of it. May be called several times."""
        if self.number >= 0:
            os.close(self.number)
            os.close(self._parent)
            self.number = -1
