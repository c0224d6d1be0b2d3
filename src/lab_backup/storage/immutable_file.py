"""Files that nobody may change, replace or remove, root included, until somebody with CAP_LINUX_IMMUTABLE takes that back: chattr(1), ioctl_iflags(2).

The kernel knows no date, so the date is an extended attribute of the file, set before the flag, which then protects it as well.
"""

import errno
import fcntl
import os
import secrets
import struct
from contextlib import suppress
from datetime import UTC, datetime

_GET_FLAGS = 0x80086601  # linux/fs.h, as on all 64-bit machines
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x10
_FLAGS = struct.Struct("l")
_UNTIL = "user.lab-backup.locked-until"


def locked_until(file: int) -> datetime | None:
    """Return until when the open file is locked, None where it is not, or by somebody else. Raises OSError."""
    return _stated(file) if _flags(file) & _IMMUTABLE else None


def lock(file: int, until: datetime) -> None:
    """Lock the open file until then, unless it is locked for longer; durable. Raises OSError."""
    known = locked_until(file)
    if known is not None and known >= until:
        return
    flags = _flags(file)
    if flags & _IMMUTABLE:
        _set_flags(file, flags & ~_IMMUTABLE)
    try:
        os.setxattr(file, _UNTIL, until.astimezone(UTC).isoformat().encode())
    finally:
        _set_flags(file, flags | _IMMUTABLE)
    os.fsync(file)


def unlock(file: int) -> None:
    """Let the open file be removed again. Raises OSError."""
    _set_flags(file, _flags(file) & ~_IMMUTABLE)


def can_lock(folder: int) -> bool:
    """Whether this file system and this process can lock files in the open folder: it is tried."""
    name = f"probe-{secrets.token_hex(8)}"
    try:
        file = os.open(name, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        lock(file, datetime.now(UTC))
    except OSError:
        return False
    else:
        return True
    finally:
        with suppress(OSError):
            unlock(file)
        os.close(file)
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _stated(file: int) -> datetime | None:
    try:
        return datetime.fromisoformat(os.getxattr(file, _UNTIL).decode("ascii"))
    except ValueError:
        return None
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _flags(file: int) -> int:
    buffer = bytearray(_FLAGS.size)
    try:
        fcntl.ioctl(file, _GET_FLAGS, buffer)
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            return 0  # a file system without flags
        raise
    return int(_FLAGS.unpack(buffer)[0])


def _set_flags(file: int, flags: int) -> None:
    fcntl.ioctl(file, _SET_FLAGS, _FLAGS.pack(flags))
