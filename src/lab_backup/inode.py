"""Files of any kind held open by O_PATH descriptors, so that looking at them and changing them meets the same one.

Such a descriptor needs no permission on the file and has no effect on it (a device is not opened, a FIFO not waited
for). The link to it in /proc leads to that very file, also where it is a symbolic link (proc_pid_fd(5)).
"""

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

_EMPTY_PATH = 0x1000  # statx(2): the descriptor itself
_WANT_BIRTH = 0x800
_IS_MOUNT = 0x2000
_STATX = struct.Struct("=I 4x Q 64x q I")  # <linux/stat.h>: stx_mask, stx_attributes, stx_btime
_STATX_SIZE = 256

_libc = ctypes.CDLL(None, use_errno=True)
_statx = _libc.statx
_statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_statx.restype = ctypes.c_int
_syncfs = _libc.syncfs
_syncfs.argtypes = [ctypes.c_int]
_syncfs.restype = ctypes.c_int


class Origin(NamedTuple):
    """Whether something else is mounted at a file, and when its inode was made (0: unknown), which tells it from a later one of its number."""

    mounted: bool
    born_ns: int


def hold(name: bytes, directory: int) -> int:
    """Return an O_PATH descriptor of `name` in the open `directory`; a symbolic link is not followed. Raises OSError."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def link_to(number: int) -> str:
    """Return a path that leads to the file of the open descriptor `number`, for calls that take no descriptor."""
    return f"/proc/self/fd/{number}"


def set_mode(number: int, mode: int) -> None:
    """Set the mode of the file of the open descriptor `number`, which may be an O_PATH one. Raises OSError."""
    Path(link_to(number)).chmod(mode)


def origin(number: int) -> Origin:
    """Return what statx(2) tells about the file of the open descriptor `number`. Raises OSError."""
    result = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(number, b"", _EMPTY_PATH, _WANT_BIRTH, result) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    mask, attributes, seconds, nanoseconds = _STATX.unpack_from(result)
    return Origin(bool(attributes & _IS_MOUNT), seconds * 10**9 + nanoseconds if mask & _WANT_BIRTH else 0)


def sync_file_system(number: int) -> None:
    """Make all that was written to the file system of the open descriptor `number` durable (syncfs(2)). Raises OSError."""
    if _syncfs(number) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
