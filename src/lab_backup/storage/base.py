"""The contract of an object store. Its words are what `tests/contract/test_storage.py` checks on every backend.

A store maps paths to byte strings that by convention never change. A *path* is relative, of `/`-separated parts made
of `A-Z a-z 0-9 . _ -`, none empty and none with a leading dot; every method raises InvalidPathError for anything else,
before it touches the store. One path is never the folder of another: `a` and `a/b` cannot both be objects.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from lab_backup.blocks import Buffer
from lab_backup.errors import AccessDeniedError, LabBackupError, NotFoundError

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
MAX_PATH = 512  # characters; far below what S3 (1024 bytes), SMB and POSIX accept


class StorageError(LabBackupError):
    """The store cannot do what was asked, and the same call will fail again."""


class InvalidPathError(StorageError):
    """The path is not one that a store may hold. Nothing was touched."""


class StorageNotFoundError(StorageError, NotFoundError):
    """There is no store at the address, or it vanished while it was open."""


class ObjectNotFoundError(StorageError, NotFoundError):
    """There is no object of that name. Never raised for an unreachable store."""


class ObjectExistsError(StorageError):
    """`create` found an object under that name; it was left as it was."""


class StorageAccessError(StorageError, AccessDeniedError):
    """The store refuses: permissions or credentials."""


class NoSpaceError(StorageError):
    """The store is full, or a quota is used up. Under the object's name is what was there before."""


class ObjectLockedError(StorageError):
    """The object may not be deleted or replaced before `until` (UTC), by anybody. It was left as it was."""

    def __init__(self, message: str, *, until: datetime, hint: str | None = None) -> None:
        """Keep `until` besides message and hint."""
        super().__init__(message, hint=hint)
        self.until = until


class TransientStorageError(StorageError):
    """The call failed for a reason that may pass: the same call may be made again."""


class ObjectInfo(NamedTuple):
    """What a store knows of an object: its path, size in bytes, and when it was last written, by the store's clock (UTC)."""

    path: str
    size: int
    modified: datetime


class Usage(NamedTuple):
    """Bytes of the whole store. `total` and `free` are None where a store has no limit that it tells."""

    total: int | None
    used: int
    free: int | None


def check_path(path: str, *, prefix: bool = False) -> str:
    """Return `path` if it is one that a store may hold (or, with `prefix`, a folder's path or ""), else raise InvalidPathError."""
    if prefix and path == "":
        return path
    if len(path) > MAX_PATH or not all(_PART.fullmatch(part) for part in path.split("/")):
        raise InvalidPathError(f"{path[:MAX_PATH]!r} is not a path that a storage may hold")
    return path


class StorageBackend(ABC):
    """An object store. Thread-safe: any number of threads may call any method at once.

    Objects are whole or absent: no reader, however it is timed and whatever is killed, sees part of an object under
    its name. A call that raises TransientStorageError may be repeated; all calls are idempotent, `create` with the
    exception that its repetition may find its own object.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The store's address without any secret, for messages."""

    @property
    @abstractmethod
    def concurrency(self) -> int:
        """How many uploads or downloads at once keep this store busy."""

    @abstractmethod
    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data` under `path`, replacing what is there. Durable when it returns.

        `metadata` is advisory, for people who look at the store with other tools; nothing reads it back.
        Raises NoSpaceError, StorageAccessError, TransientStorageError, ObjectLockedError.
        """

    @abstractmethod
    def create(self, path: str, data: Buffer) -> None:
        """Store `data` under `path` if there is nothing, else raise ObjectExistsError. Durable when it returns.

        Of several concurrent callers at most one succeeds, where the store can promise that (`atomic_create`).
        """

    @property
    def atomic_create(self) -> bool:
        """Whether `create` is one atomic step, or a look followed by an upload."""
        return True

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of the object from `offset` (all the rest if None).

        Returns fewer bytes only where the object ends before, so none at all from its end on. Raises
        ObjectNotFoundError; ValueError where `offset` or `length` is negative.
        """

    def download(self, path: str, destination: Path) -> None:
        """Write the object to the new file `destination`. Raises FileExistsError where it is there already."""
        info = self.stat(path)
        with destination.open("xb") as file:
            at = 0
            while at < info.size:
                part = self.read(path, at, 8 * 1024 * 1024)
                if not part:
                    raise TransientStorageError(f"{path} on {self.url} became shorter while it was read")
                file.write(part)
                at += len(part)

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the object. Durable when it returns; no error where there is none. Raises ObjectLockedError."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return all objects in the folder `prefix` and below it, in no order.

        Objects written or deleted meanwhile may be there or not; all others are. An empty or missing folder yields
        nothing. Leftovers of interrupted uploads, and files that no store could have written, are not listed.
        """

    @abstractmethod
    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object. Raises ObjectNotFoundError."""

    @property
    def locks(self) -> bool:
        """Whether objects here can be locked against deletion for a time."""
        return False

    def lock(self, path: str, until: datetime) -> None:
        """Let nobody delete or replace the object before `until`, which has a time zone. A lock is only ever prolonged.

        Durable when it returns. Raises ObjectNotFoundError; StorageError where the store cannot lock.
        """
        raise StorageError(f"{self.url} cannot lock {path} until {until:%Y-%m-%d}", hint="use a storage that can")

    def locked_until(self, path: str) -> datetime | None:
        """Return until when (UTC) the object is locked, None where it is not. Raises ObjectNotFoundError."""
        self.stat(path)
        return None

    @abstractmethod
    def get_usage(self) -> Usage:
        """Return the space of the store."""

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove leftovers of uploads that were interrupted longer ago than that; return how many there were."""
        del older_than_seconds
        return 0

    def close(self) -> None:
        """Let go of connections; may be called several times."""
        return
