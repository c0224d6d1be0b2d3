"""Key files: random bytes in a file of their own, which open a repository without anybody typing."""

import os
import stat
from pathlib import Path

from lab_backup.cli.printing import tell
from lab_backup.errors import AccessDeniedError, UsageError
from lab_backup.repository.keys import MAX_KEY_FILE, KeyFile


def read_key_file(path: Path) -> KeyFile:
    """Return the key in the file. Raises UsageError, AccessDeniedError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_FILE + 1)
    except PermissionError as error:
        raise AccessDeniedError(f"the key file {path} may not be read by this user") from error
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        tell("warning", f"the key file {path} is open to other users; close it: chmod 600 {path}")
    return KeyFile(data)


def new_key_file(path: Path) -> KeyFile:
    """Return the key in the file; where there is none, make one that only this user can read, durably."""
    key = KeyFile.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return read_key_file(path)
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be made: {error.strerror}") from error
    with open(descriptor, "wb") as file:  # noqa: PTH123  a Path cannot open a descriptor
        file.write(key.data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return key
