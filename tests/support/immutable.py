"""Locks that a test has laid on files: taken off, so that its folder can be removed, or ended, as if the time were over."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab_backup.storage import immutable_file


def unlock_all(folder: Path, *, ended: bool = False) -> None:
    """Unlock every file below `folder`; with `ended` they stay immutable, but their time was over an hour ago."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if immutable_file.locked_until(file) is not None:
                    immutable_file.unlock(file)
                    if ended:
                        immutable_file.lock(file, datetime.now(UTC) - timedelta(hours=1))
            finally:
                os.close(file)
