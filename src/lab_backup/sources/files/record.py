"""From a file held open to its record."""

import errno
import os
import stat
from collections.abc import Callable

from lab_backup.filetree import FileKind, FileRecord
from lab_backup.inode import link_to

_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFBLK: FileKind.BLOCK,
}
_NO_ATTRIBUTES = {errno.EOPNOTSUPP, errno.ENOSYS}
_DEVICES = {FileKind.CHARACTER, FileKind.BLOCK}

Unreadable = Callable[[OSError], None]
"""Told about extended attributes that could not be read."""


def read_record(path: bytes, number: int, status: os.stat_result, unreadable: Unreadable) -> FileRecord:
    """Return the record of the file that `number` holds open (also by O_PATH) and that has `status`. Raises OSError."""
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    return FileRecord(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is FileKind.FILE else 0,
        target=os.readlink(b"", dir_fd=number) if kind is FileKind.SYMLINK else b"",
        major=os.major(status.st_rdev) if kind in _DEVICES else 0,
        minor=os.minor(status.st_rdev) if kind in _DEVICES else 0,
        xattrs=_read_attributes(number, unreadable),
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
    )


def _read_attributes(number: int, unreadable: Unreadable) -> dict[bytes, bytes]:
    path = link_to(number)
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(path))
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            unreadable(error)
        return {}
    found = {}
    for name in names:
        try:
            found[name] = os.getxattr(path, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since they were listed
                unreadable(error)
    return found
