"""Taking off locks that a test has laid on files, so that its folder can be removed."""

import os
from pathlib import Path

from lab_backup.storage import immutable_file


def unlock_all(folder: Path) -> None:
    """Unlock every file below `folder`."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if immutable_file.locked_until(file) is not None:
                    immutable_file.unlock(file)
            finally:
                os.close(file)
