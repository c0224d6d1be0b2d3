"""Objects in a dictionary: for tests of everything above the store, and as the base that faults are laid over."""

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from lab_backup.blocks import Buffer
from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
    Usage,
    check_path,
)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryStorage(StorageBackend):
    """A store that lasts as long as the object, with at most `capacity` bytes and a clock of the caller's choice."""

    def __init__(self, *, capacity: int | None = None, clock: Callable[[], datetime] = _utc_now) -> None:
        """Begin empty. `clock` returns the time, with a zone, that a new object gets."""
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._locks: dict[str, datetime] = {}

    @property
    def url(self) -> str:
        """A name for messages; no address leads here."""
        return "memory:"

    @property
    def concurrency(self) -> int:
        """Memory never waits, but tests should meet concurrent calls."""
        return 4

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Keep a copy of `data`."""
        del metadata
        self._put(path, data, replace=True)

    def create(self, path: str, data: Buffer) -> None:
        """Keep a copy of `data` if the name is free."""
        self._put(path, data, replace=False)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length must not be negative")
        data, _ = self._get(path)
        return data[offset:] if length is None else data[offset : offset + length]

    def delete(self, path: str) -> None:
        """Forget the object."""
        check_path(path)
        with self._lock:
            self._refuse_locked(path)
            self._objects.pop(path, None)
            self._locks.pop(path, None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects that there were at the first step of the iteration."""
        check_path(prefix, prefix=True)
        below = f"{prefix}/" if prefix else ""
        with self._lock:
            found = [
                ObjectInfo(path, len(data), modified)
                for path, (data, modified) in self._objects.items()
                if path.startswith(below)
            ]
        yield from found

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        data, modified = self._get(path)
        return ObjectInfo(path, len(data), modified)

    @property
    def locks(self) -> bool:
        """Locks hold against everybody but the end of the object itself."""
        return True

    def lock(self, path: str, until: datetime) -> None:
        """Remember the lock."""
        self._get(path)
        with self._lock:
            self._locks[path] = max(until, self._locks.get(path, until)).astimezone(UTC)

    def locked_until(self, path: str) -> datetime | None:
        """Return the lock, if it has not ended."""
        self._get(path)
        with self._lock:
            until = self._locks.get(path)
        return until if until is not None and until > self._clock() else None

    def _refuse_locked(self, path: str) -> None:
        until = self._locks.get(path)
        if until is not None and until > self._clock():
            raise ObjectLockedError(f"{path} is locked until {until:%Y-%m-%d %H:%M} UTC", until=until)

    def get_usage(self) -> Usage:
        """Return the bytes of all objects."""
        with self._lock:
            used = self._used()
        return Usage(self._capacity, used, None if self._capacity is None else self._capacity - used)

    def _put(self, path: str, data: Buffer, *, replace: bool) -> None:
        check_path(path)
        copy = bytes(data)
        with self._lock:
            if not replace and path in self._objects:
                raise ObjectExistsError(f"{path} exists already")
            if any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in self._objects):
                raise StorageError(f"{path}: a part of the path is an object, or the path is a folder")
            if path in self._objects:
                self._refuse_locked(path)
            previous = len(self._objects[path][0]) if path in self._objects else 0
            if self._capacity is not None and self._used() - previous + len(copy) > self._capacity:
                raise NoSpaceError(f"{path}: the store is full", hint="delete backups")
            self._objects[path] = (copy, self._clock())

    def _get(self, path: str) -> tuple[bytes, datetime]:
        check_path(path)
        with self._lock:
            found = self._objects.get(path)
        if found is None:
            raise ObjectNotFoundError(f"there is no {path}")
        return found

    def _used(self) -> int:
        return sum(len(data) for data, _ in self._objects.values())
