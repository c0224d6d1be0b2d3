"""A store that is used with restraint: so many bytes a second, so many calls at once."""

import threading
from collections.abc import Iterator, Mapping
from datetime import datetime

from lab_backup.blocks import Buffer
from lab_backup.storage.base import ObjectInfo, StorageBackend, Usage
from lab_backup.storage.rate import RateLimit


class LimitedStorage(StorageBackend):
    """The store `inner` with limits for what goes up, for what comes down, and for calls at the same time.

    An object travels whole once it is its turn, so short peaks are as high as the line allows; the average is what was asked for. Bytes that
    are read are waited for afterwards, when their number is known. Several stores may share one limit.
    """

    def __init__(
        self,
        inner: StorageBackend,
        *,
        upload: RateLimit | None = None,
        download: RateLimit | None = None,
        calls: int | None = None,
    ) -> None:
        """Wrap `inner`, which `close` closes too. `calls`: at most so many at once."""
        self._inner = inner
        self._up = upload or RateLimit(None)
        self._down = download or RateLimit(None)
        self._calls = calls
        self._gate = threading.BoundedSemaphore(calls) if calls else None

    @property
    def url(self) -> str:
        """The inner store's address."""
        return self._inner.url

    @property
    def concurrency(self) -> int:
        """The inner store's figure, or fewer."""
        return min(self._inner.concurrency, self._calls or self._inner.concurrency)

    @property
    def atomic_create(self) -> bool:
        """Whether the inner store's `create` is one step."""
        return self._inner.atomic_create

    def _enter(self) -> "threading.BoundedSemaphore | _Open":
        return self._gate or _OPEN

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data` when it is its turn."""
        self._up.wait(memoryview(data).nbytes)
        with self._enter():
            self._inner.upload(path, data, metadata)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` when it is its turn, if the name is free."""
        self._up.wait(memoryview(data).nbytes)
        with self._enter():
            self._inner.create(path, data)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object."""
        with self._enter():
            data = self._inner.read(path, offset, length)
        self._down.wait(len(data))
        return data

    def delete(self, path: str) -> None:
        """Remove the object."""
        with self._enter():
            self._inner.delete(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`. A listing takes no place among the calls: it may be left half read."""
        return self._inner.list(prefix)

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        with self._enter():
            return self._inner.stat(path)

    @property
    def locks(self) -> bool:
        """Whether the inner store locks objects."""
        return self._inner.locks

    def lock(self, path: str, until: datetime) -> None:
        """Lock the object."""
        with self._enter():
            self._inner.lock(path, until)

    def locked_until(self, path: str) -> datetime | None:
        """Return until when the object is locked."""
        with self._enter():
            return self._inner.locked_until(path)

    def get_usage(self) -> Usage:
        """Return the space of the store."""
        return self._inner.get_usage()

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove leftovers."""
        return self._inner.clean_temporary(older_than_seconds)

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()


class _Open:
    """A gate that nobody waits at."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc_info: object) -> None:
        return


_OPEN = _Open()
