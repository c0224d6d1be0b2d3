"""What can go wrong at the place that a restore writes to, in words that name the place and the way out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, TargetExistsError
from lab_backup.units import format_size


class TargetError(LabBackupError):
    """The target cannot be written."""


class TargetFullError(TargetError):
    """There is too little space for what should be written; what had been written is removed."""

    def __init__(self, path: Path, *, needed: int | None = None, free: int | None = None) -> None:
        """Say what is missing at `path`, in bytes where it is known."""
        amount = (
            f": {format_size(needed)} needed, {format_size(free)} free"
            if needed is not None and free is not None
            else ""
        )
        super().__init__(
            f"there is no space left at {path}{amount}", hint="make room there, or name another place; nothing was kept"
        )


class TargetAccessError(TargetError, AccessDeniedError):
    """The operating system does not let us write there."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn operating system errors about the target `path` into LabBackupErrors."""
    try:
        yield
    except OSError as error:
        raise _translate(path, error) from error


def exists(path: Path) -> TargetExistsError:
    """Return the error for a target that is there already."""
    kind = "a symbolic link" if path.is_symlink() else "something"
    return TargetExistsError(
        f"there is {kind} at {path} already; it was left as it is", hint="name another path, or move it away first"
    )


def _translate(path: Path, error: OSError) -> LabBackupError:  # noqa: PLR0911 - one sentence for each kind
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return TargetFullError(path)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return TargetAccessError(
                f"writing {path} is not allowed ({_reason(error)})", hint="run as a user who may, or name another place"
            )
        case errno.EEXIST:
            return exists(path)
        case errno.ENOENT | errno.ENOTDIR:
            missing = path if path.parent.is_dir() else path.parent
            return TargetError(f"the folder {missing} does not exist", hint="make it first, or name another place")
        case errno.EBUSY | errno.EAGAIN | errno.ETXTBSY:
            return BusyError(
                f"{path} is in use", hint="unmount it, or stop the virtual machine or program that uses it"
            )
        case errno.EFBIG | errno.EOVERFLOW:
            return TargetError(
                f"the file system of {path} cannot hold so large a file", hint="name a place on another file system"
            )
        case errno.ELOOP:
            return TargetError(f"{path} is a symbolic link, which is not followed", hint="name the file itself")
        case _:
            return TargetError(f"cannot write {path}: {_reason(error)}")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno is not None else str(error)
