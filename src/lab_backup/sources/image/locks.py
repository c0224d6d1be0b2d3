"""QEMU's image locks: which process may do what with an image.

QEMU (block/file-posix.c, "image locking" in its manual) puts read locks of open file descriptions on single bytes of
the image: byte 100 + n for each permission that it uses, 200 + n for each that it grants nobody else.
"""

import errno
import fcntl
import struct
from enum import IntEnum

_USED = 100
_REFUSED = 200
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid
_UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class Permission(IntEnum):
    """QEMU's numbers of what one can do with an image."""

    CONSISTENT_READ = 0
    WRITE = 1
    RESIZE = 3


_WE_USE = _USED + Permission.CONSISTENT_READ
_WE_REFUSE = (_REFUSED + Permission.WRITE, _REFUSED + Permission.RESIZE)
_IN_OUR_WAY = (_USED + Permission.WRITE, _USED + Permission.RESIZE, _REFUSED + Permission.CONSISTENT_READ)


class Locked(Exception):  # noqa: N818 - an answer for the caller, who words the error
    """Another process writes the image, or does not want it to be read."""


def lock_for_reading(fd: int) -> bool:
    """Keep QEMU from writing the image open as `fd` until that is closed; return False where locks are unsupported.

    Raises Locked where somebody writes it already.
    """
    try:
        for byte in (_WE_USE, *_WE_REFUSE):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        if any(_is_locked(fd, byte) for byte in _IN_OUR_WAY):
            raise Locked
    except (BlockingIOError, PermissionError) as error:  # a write lock of something that is not QEMU
        raise Locked from error
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether anybody else has a lock on `byte`; asks for a write lock, which any other lock forbids."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    kind = _FLOCK.unpack(answer)[0]
    return bool(kind != fcntl.F_UNLCK)


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, 0, byte, 1, 0)
