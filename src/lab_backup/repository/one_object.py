"""Reading one object of a storage that may hold what others planted: what only this object refuses is damage of it."""

from itertools import islice

from lab_backup.repository.config import COPY, PATH
from lab_backup.repository.errors import DamagedError
from lab_backup.storage.base import (
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)
from lab_backup.units import MiB

_ENOUGH = 64 * 1024
_NEIGHBOURS = 5
MOST = 66 * MiB  # no object but a pack is larger, and of a pack only parts are read


def read_object(storage: StorageBackend, path: str, offset: int = 0, length: int | None = None) -> bytes:
    """Return a part of the object, as `storage.read` does.

    Raises DamagedError where the storage hands out others but not this one: a symbolic link, what somebody encrypted with a key of his own,
    what was moved to an archive; and where it is larger than any of ours. Otherwise whoever may write would stop everybody by one object.
    Other errors of the storage pass through.
    """
    try:
        data = storage.read(path, offset, MOST if length is None else length)
    except (ObjectNotFoundError, StorageNotFoundError, TransientStorageError):
        raise
    except StorageError as error:
        if path in {PATH, COPY} or not _hands_out_others(storage) or _refuses_all(storage, path, error):
            raise
        raise DamagedError(f"{path} cannot be read, though others can: {error}", hint=error.hint) from error
    if length is None and len(data) == MOST:
        raise DamagedError(f"{path} is larger than any object of a repository", hint="it was overwritten or planted")
    return data


def _hands_out_others(storage: StorageBackend) -> bool:
    for path in (PATH, COPY):
        try:
            storage.read(path, 0, _ENOUGH)
        except StorageError:
            continue
        return True
    return False


def _refuses_all(storage: StorageBackend, path: str, error: StorageError) -> bool:
    """Whether access is refused to the others beside this one too: then it is a right that is missing, and nothing is damaged."""
    if not isinstance(error, StorageAccessError):
        return False
    beside = (info.path for info in storage.list(path.rpartition("/")[0]) if info.path != path)
    for other in (tried := list(islice(beside, _NEIGHBOURS))):
        try:
            storage.read(other, 0, 1)
        except StorageError:
            continue
        return False
    return bool(tried)
