"""Objects as files below a folder of a mounted file system.

An upload writes a temporary file in `.tmp` at the root, syncs it, moves it to its name and syncs the folder, so that a
name never shows part of an object. Every path is walked from an open root one part at a time without following
symbolic links, so whoever can write into the store cannot lead it out of its folder.
"""

import ctypes
import errno
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from lab_backup.blocks import Buffer
from lab_backup.direct_io import SMALLEST, open_direct, write_at
from lab_backup.storage import immutable_file
from lab_backup.storage.base import (
    InvalidPathError,
    NoSpaceError,
    ObjectExistsError,
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
    Usage,
    check_path,
)
from lab_backup.units import GiB

TEMPORARY = ".tmp"  # no object's path can begin with a dot
MAX_READ = 1 * GiB  # one pread returns less than 2 GiB
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a planted FIFO must not block the open
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # linux/fs.h

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EINTR,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStorage(StorageBackend):
    """The store in the folder `root`, which must exist. `root` itself may be a symbolic link; nothing below it is followed.

    The folder stays open until `close`, so a store whose mount is lost fails instead of filling the disk underneath.
    """

    def __init__(self, root: Path) -> None:
        """Open `root`. Raises StorageNotFoundError where there is no such folder, StorageAccessError."""
        self._path = root.absolute()
        self._durable: set[str] = set()  # folders whose own entry this object has synced
        try:
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageNotFoundError(
                f"{self._path} is not a folder", hint="check the address, and that the file system is mounted"
            ) from error
        except OSError as error:
            raise _translated(error, str(self._path)) from error

    @classmethod
    def create_root(cls, root: Path) -> "LocalStorage":
        """Make the folder `root` where it does not exist (its parent must), and open it."""
        path = root.absolute()
        try:
            path.mkdir(_FOLDER_MODE)
        except FileExistsError:
            return cls(root)
        except FileNotFoundError as error:
            raise StorageNotFoundError(
                f"{path.parent} does not exist, so {path.name} cannot be made in it",
                hint="make the folder first, or check that the file system is mounted",
            ) from error
        except OSError as error:
            raise _translated(error, str(path)) from error
        with _errors(str(path)):
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        return cls(root)

    @property
    def url(self) -> str:
        """The folder as a `file:` URL."""
        return self._path.as_uri()

    @property
    def concurrency(self) -> int:
        """Enough that some calls write while others wait for the disk to sync."""
        return 4

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data` under `path`. `metadata` is dropped: not every file system has a place for it."""
        del metadata
        self._publish(path, data, replace=True)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` under `path` if there is nothing, in one step of the file system."""
        self._publish(path, data, replace=False)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of the object from `offset`; a negative one is a mistake of the caller's."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length must not be negative")
        check_path(path)
        folder_path, _, name = path.rpartition("/")
        # Restores read thousands of ranges a second: a context manager's overhead is a third of the call.
        try:
            folder = self._open_folder(folder_path)
            try:
                file = os.open(name, _READ, dir_fd=folder)
            finally:
                os.close(folder)
            try:
                status = os.fstat(file)
                self._check_regular(status, path)
                rest = max(0, status.st_size - offset)
                return _pread(file, offset, rest if length is None else min(length, rest))
            finally:
                os.close(file)
        except OSError as error:
            raise self._error(error, path) from error

    def delete(self, path: str) -> None:
        """Remove the object and sync its folder, also where it is gone already: an earlier sync may have failed."""
        with self._errors(path), suppress(FileNotFoundError), self._folder_of(path) as (folder, name):
            with suppress(FileNotFoundError):
                try:
                    os.unlink(name, dir_fd=folder)
                except PermissionError:
                    if not self._unlocked(path):
                        raise
                    os.unlink(name, dir_fd=folder)
            os.fsync(folder)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`, one folder of the disk after the other."""
        check_path(prefix, prefix=True)
        pending = deque([prefix])
        while pending:
            folder = pending.pop()
            with self._errors(folder):
                self._check_root()
                yield from self._list_folder(folder, pending)

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        with self._errors(path), self._folder_of(path) as (folder, name):
            status = _status(name, folder)
            self._check_regular(status, path)
            return _info(path, status)

    @cached_property
    def locks(self) -> bool:
        """Whether files here can be made immutable, for which one must be root; it is tried once."""
        with self._errors(TEMPORARY), self._temporary_folder() as folder:
            return immutable_file.can_lock(folder)

    def lock(self, path: str, until: datetime) -> None:
        """Make the file immutable until then. Root on this machine can take that back; nobody else can, and no file server's client."""
        if not self.locks:
            super().lock(path, until)
        with self._opened(path) as file:
            immutable_file.lock(file, until)

    def locked_until(self, path: str) -> datetime | None:
        """Return the lock, if it has not ended by this machine's clock."""
        with self._opened(path) as file:
            until = immutable_file.locked_until(file)
        return until if until is not None and until > datetime.now(UTC) else None

    def _unlocked(self, path: str) -> bool:
        """Whether a lock of ours has ended, and was taken off now. Raises ObjectLockedError where it has not."""
        with self._opened(path) as file:
            until = immutable_file.locked_until(file)
            if until is None:
                return False
            if until > datetime.now(UTC):
                raise ObjectLockedError(
                    f"{path} in {self._path} is locked until {until:%Y-%m-%d %H:%M} UTC", until=until
                )
            immutable_file.unlock(file)
        return True

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        with self._errors(path), self._folder_of(path) as (folder, name):
            self._check_regular(_status(name, folder), path)
            file = os.open(name, _READ, dir_fd=folder)
            try:
                yield file
            finally:
                os.close(file)

    def get_usage(self) -> Usage:
        """Return the space of the file system that the root lies on, for users without special rights."""
        with self._errors(""):
            space = os.fstatvfs(self._root)
        block = space.f_frsize
        return Usage(space.f_blocks * block, (space.f_blocks - space.f_bfree) * block, space.f_bavail * block)

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove temporary files last written longer ago than that, by this machine's clock."""
        limit = time.time() - older_than_seconds
        count = 0
        with self._errors(TEMPORARY), suppress(FileNotFoundError):
            folder = os.open(TEMPORARY, _FOLDER, dir_fd=self._root)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            if not stat.S_ISDIR(status.st_mode) and status.st_mtime < limit:
                                count += _removed(entry.name, folder)
            finally:
                os.close(folder)
        return count

    def close(self) -> None:
        """Let go of the root; every later call fails."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def _publish(self, path: str, data: Buffer, *, replace: bool) -> None:
        with self._errors(path):
            try:
                with self._folder_of(path, make=True) as (folder, name), self._temporary_folder() as temporary:
                    try:
                        _put(data, temporary, name, folder, replace=replace)
                    except PermissionError:
                        if not (replace and _exists(name, folder) and self._unlocked(path)):
                            raise
                        _put(data, temporary, name, folder, replace=True)
                    os.fsync(folder)
            except FileExistsError as error:
                raise ObjectExistsError(f"{path} exists already in {self._path}") from error
            except FileNotFoundError as error:
                self._check_root()
                raise TransientStorageError(
                    f"{path} in {self._path}: its folder or temporary file was removed"
                ) from error
            except NotADirectoryError as error:
                raise StorageError(f"{path} in {self._path}: a part of the path is a file") from error

    @contextmanager
    def _folder_of(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that holds `path`; yield it with the object's own name in it."""
        check_path(path)
        folder_path, _, name = path.rpartition("/")
        folder = self._open_folder(folder_path, make=make)
        try:
            yield folder, name
        finally:
            os.close(folder)

    def _open_folder(self, path: str, *, make: bool = False) -> int:
        at = root = self._root
        if not path:
            return os.dup(root)
        seen = ""
        for part in path.split("/"):
            seen = f"{seen}/{part}" if seen else part
            try:
                below = self._open_below(at, part, seen, make=make)
            finally:
                if at != root:
                    os.close(at)
            at = below
        return at

    def _open_below(self, folder: int, name: str, path: str, *, make: bool) -> int:
        if make and path not in self._durable:
            self._make_folder(folder, name, path)
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
            self._make_folder(folder, name, path)  # somebody removed it since
            return os.open(name, _FOLDER, dir_fd=folder)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP} and stat.S_ISLNK(_status(name, folder).st_mode):
                raise self._link_error(path) from error
            raise

    def _make_folder(self, folder: int, name: str, path: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, _FOLDER_MODE, dir_fd=folder)
        # Also where it existed: whoever made it, a thread or another process, may not have synced it yet.
        os.fsync(folder)
        self._durable.add(path)

    @contextmanager
    def _temporary_folder(self) -> Iterator[int]:
        try:
            folder = os.open(TEMPORARY, _FOLDER, dir_fd=self._root)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(TEMPORARY, _FOLDER_MODE, dir_fd=self._root)
            folder = os.open(TEMPORARY, _FOLDER, dir_fd=self._root)
        try:
            yield folder
        finally:
            os.close(folder)

    def _list_folder(self, path: str, pending: deque[str]) -> Iterator[ObjectInfo]:
        try:
            folder = self._open_folder(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    below = f"{path}/{entry.name}" if path else entry.name
                    try:
                        check_path(below)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(below)
                        elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                            # Passing over a link could hide a manifest, and collection would delete what it needs: who reads it is told.
                            yield _info(below, entry.stat(follow_symlinks=False))
                    except (InvalidPathError, FileNotFoundError):
                        continue  # foreign to the store, or deleted meanwhile
        finally:
            os.close(folder)

    def _check_regular(self, status: os.stat_result, path: str) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise self._link_error(path)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError

    def _check_root(self) -> None:
        """Raise StorageNotFoundError where the store's folder was removed: then nothing can be said about any object."""
        if os.fstat(self._root).st_nlink == 0:
            raise StorageNotFoundError(
                f"the folder {self._path} was removed", hint="check that the file system is mounted"
            )

    def _link_error(self, path: str) -> StorageError:
        return StorageError(
            f"{path} in {self._path} is a symbolic link, and a storage follows none",
            hint="if you made it, move what it points to into its place; if not, somebody planted it: remove it",
        )

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, path) from error

    def _error(self, error: OSError, path: str) -> StorageError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            try:
                self._check_root()
            except OSError as worse:  # it says that the folder itself cannot be reached, so nothing about the object
                return self._error(worse, path)
            return ObjectNotFoundError(f"there is no {path} in {self._path}")
        if error.errno == errno.ELOOP:
            return self._link_error(path)
        return _translated(error, f"{path} in {self._path}" if path else str(self._path))


@contextmanager
def _errors(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translated(error, place) from error


def _translated(error: OSError, place: str) -> StorageError:
    """Sort the operating system's errors by what the caller may do next."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    text = f"{place}: {reason}"
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            text, hint="free space on the storage or raise its quota; deleting backups works on a full disk"
        )
    if error.errno in _NO_ACCESS:
        return StorageAccessError(text, hint="check owner, mode and mount options of the storage's folder")
    if error.errno in _TRANSIENT:
        return TransientStorageError(text, hint="check the disk or the connection to the file server, then try again")
    return StorageError(text)


def _put(data: Buffer, temporary: int, name: str, folder: int, *, replace: bool) -> None:
    """Write `data` to a file in `temporary`, sync it, and move it to `name` in `folder`; leave nothing on failure."""
    if not replace and _exists(name, folder):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    temporary_name = secrets.token_hex(16)
    try:
        _write(temporary_name, temporary, data)
        if replace:
            os.replace(temporary_name, name, src_dir_fd=temporary, dst_dir_fd=folder)
            return
        _link(temporary_name, temporary, name, folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary_name, dir_fd=temporary)
        raise
    with suppress(FileNotFoundError):
        os.unlink(temporary_name, dir_fd=temporary)


def _removed(name: str, folder: int) -> bool:
    """Remove a file; return False for one that is locked, as another name of an object may be. Raises OSError."""
    try:
        os.unlink(name, dir_fd=folder)
    except PermissionError:
        file = os.open(name, _READ, dir_fd=folder)
        try:
            until = immutable_file.locked_until(file)
            if until is None:
                raise
            if until > datetime.now(UTC):
                return False
            immutable_file.unlock(file)  # left by a process that was killed while it tried whether files can be locked
        finally:
            os.close(file)
        os.unlink(name, dir_fd=folder)
    return True


def _write(name: str, folder: int, data: Buffer) -> None:
    """Write the new file `name` in `folder` and sync it."""
    file = os.open(name, _WRITE, _FILE_MODE, dir_fd=folder)
    try:
        direct = open_direct(file) if memoryview(data).nbytes >= SMALLEST else None
        try:
            write_at(file, direct, 0, data)
        finally:
            if direct is not None:
                os.close(direct)
        os.fsync(file)
    finally:
        os.close(file)


def _pread(file: int, offset: int, length: int) -> bytes:
    data = os.pread(file, min(length, MAX_READ), offset)
    if len(data) == length:
        return data
    parts = [data]
    at = len(data)
    while at < length and parts[-1]:
        parts.append(os.pread(file, min(length - at, MAX_READ), offset + at))
        at += len(parts[-1])
    return b"".join(parts)


def _link(source: str, source_folder: int, name: str, folder: int) -> None:
    """Give the file `source` the name `name` in one step that fails with EEXIST where that is taken."""
    try:
        os.link(source, name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # On NFS the first answer may have been lost, and what is there be ours.
        if not _same_file(source, source_folder, name, folder):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_no_replace(source, source_folder, name, folder)


def _same_file(source: str, source_folder: int, name: str, folder: int) -> bool:
    one, other = _status(source, source_folder), _status(name, folder)
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _rename_no_replace(source: str, source_folder: int, name: str, folder: int) -> None:
    """Do the same by renameat2(2), for file systems without hard links such as vfat. NFS has links but not this."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(source_folder, source.encode(), folder, name.encode(), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _exists(name: str, folder: int) -> bool:
    try:
        _status(name, folder)
    except FileNotFoundError:
        return False
    return True


def _status(name: str, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
