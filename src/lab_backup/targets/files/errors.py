"""What can go wrong with the restore of a tree of files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab_backup.path_text import shown
from lab_backup.targets.errors import TargetAccessError, TargetError, TargetFullError


class UnsafeTreeError(TargetError):
    """The backup names something that lies outside of its own tree, or twice the same: it is damaged or forged."""

    def __init__(self, path: bytes, why: str) -> None:
        """Say what is wrong with `path`."""
        super().__init__(
            f"the backup is not restored, since {shown(path)} in it {why}",
            hint="nothing was kept; verify the backup, and ask who can write to the repository",
        )


@contextmanager
def naming(folder: Path, path: bytes) -> Iterator[None]:
    """Turn operating system errors about `path`, which is below `folder`, into TargetErrors."""
    try:
        yield
    except OSError as error:
        raise _translate(folder, path, error) from error


def _translate(folder: Path, path: bytes, error: OSError) -> TargetError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return TargetFullError(folder)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return TargetAccessError(
                f"{shown(path)} cannot be made in {folder} ({reason(error)})",
                hint="run as a user who may, or name another place",
            )
        case errno.EEXIST | errno.ENOENT | errno.ENOTDIR | errno.ELOOP | errno.EXDEV:
            return TargetError(
                f"somebody else changes {folder} during the restore: {shown(path)} is not as it was made",
                hint="stop what uses the folder, or restore into a new one",
            )
        case _:
            return TargetError(f"{shown(path)} cannot be restored into {folder}: {reason(error)}")


def reason(error: OSError) -> str:
    """Return what the operating system says, without paths."""
    return os.strerror(error.errno) if error.errno is not None else str(error)
