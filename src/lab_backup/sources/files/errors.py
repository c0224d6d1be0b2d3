"""What can go wrong with a tree of files as a whole."""

import errno
import os
from pathlib import Path

from lab_backup.errors import AccessDeniedError, LabBackupError, NotFoundError, UsageError

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Says nothing about a file, but about us: going on would leave out what could be read."""

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""What stood there a moment ago was removed, or replaced by something of another kind."""


class TreeReadError(LabBackupError):
    """The tree cannot be read at all."""


def root_error(root: Path, error: OSError) -> LabBackupError:
    """Return what it means that the folder `root` cannot be opened."""
    match error.errno:
        case errno.ENOENT:
            return NotFoundError(f"the folder {root} does not exist", hint="check the path")
        case errno.ENOTDIR:
            return UsageError(f"{root} is no folder", hint="name a folder")
        case errno.EACCES | errno.EPERM:
            return AccessDeniedError(f"no permission to read the folder {root}", hint="run as root")
        case _:
            return TreeReadError(f"the folder {root} cannot be read: {reason(error)}")


def exhausted(root: Path, error: OSError) -> TreeReadError:
    """Return the error for a host that lets us open no more files."""
    return TreeReadError(
        f"the folder {root} cannot be read on: {reason(error)}", hint="raise the limit of open files, or free memory"
    )


def reason(error: OSError) -> str:
    """Return what the operating system says, without paths."""
    return os.strerror(error.errno) if error.errno is not None else str(error)
