"""A store whose passing failures are waited out."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lab_backup.blocks import Buffer
from lab_backup.storage.base import (
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    StorageBackend,
    TransientStorageError,
    Usage,
)

_T = TypeVar("_T")
_LIST_BATCH = 1000  # objects: what one step of a listing takes, so that the retry costs nothing per object


def _policy(attempts: int, base_delay: float, max_delay: float, sleep: Callable[[float], None]) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(TransientStorageError),
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=base_delay, max=max_delay),
        sleep=sleep,
        reraise=True,
    )


def opened_patiently(
    make: Callable[[], StorageBackend],
    *,
    attempts: int = 5,
    base_delay: float = 0.25,
    max_delay: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> StorageBackend:
    """Return the store that `make` opens, waiting out failures to open it that pass as RetryingStorage does."""
    return _policy(attempts, base_delay, max_delay, sleep)(make)


class RetryingStorage(StorageBackend):
    """The store `inner`, with every call that raises TransientStorageError repeated up to `attempts` times in all.

    Before the n-th repetition it waits a random time up to `base_delay` * 2ⁿ⁻¹ seconds, at most `max_delay` ("full
    jitter": many clients of one failed server do not come back at the same instant). Other errors pass at once, and
    so does the last one. `sleep` waits for that many seconds.
    """

    def __init__(
        self,
        inner: StorageBackend,
        *,
        attempts: int = 5,
        base_delay: float = 0.25,
        max_delay: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap `inner`, which `close` closes too."""
        self._inner = inner
        self._policy = _policy(attempts, base_delay, max_delay, sleep)

    @property
    def url(self) -> str:
        """The inner store's address."""
        return self._inner.url

    @property
    def concurrency(self) -> int:
        """The inner store's figure."""
        return self._inner.concurrency

    @property
    def atomic_create(self) -> bool:
        """Whether the inner store's `create` is one step."""
        return self._repeat(lambda: self._inner.atomic_create)

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data`; the same bytes under the same name, however often it takes."""
        self._repeat(lambda: self._inner.upload(path, data, metadata))

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` if the name is free. A repetition that finds these very bytes found its own, and succeeds."""
        failed_before = False

        def attempt() -> None:
            nonlocal failed_before
            try:
                self._inner.create(path, data)
            except TransientStorageError:
                failed_before = True
                raise
            except ObjectExistsError:
                if not failed_before or not self._holds(path, data):
                    raise

        self._repeat(attempt)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object."""
        return self._repeat(lambda: self._inner.read(path, offset, length))

    def download(self, path: str, destination: Path) -> None:
        """Write the object to the new file `destination`; what a failed attempt left of it is removed."""
        if destination.exists():
            raise FileExistsError(str(destination))

        def attempt() -> None:
            try:
                self._inner.download(path, destination)
            except TransientStorageError:
                destination.unlink(missing_ok=True)
                raise

        self._repeat(attempt)

    def delete(self, path: str) -> None:
        """Remove the object."""
        self._repeat(lambda: self._inner.delete(path))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`, each once, also where the listing had to begin anew."""
        stream: Iterator[ObjectInfo] | None = None
        seen: set[str] = set()
        batch: deque[ObjectInfo] = deque()

        def fill() -> None:
            nonlocal stream
            try:
                stream = self._inner.list(prefix) if stream is None else stream
                for info in islice((info for info in stream if info.path not in seen), _LIST_BATCH):
                    seen.add(info.path)
                    batch.append(info)
            except TransientStorageError:
                stream = None
                raise

        while True:
            self._repeat(fill)
            if not batch:
                return
            yield from batch
            batch.clear()

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        return self._repeat(lambda: self._inner.stat(path))

    @property
    def locks(self) -> bool:
        """Whether the inner store locks objects."""
        return self._repeat(lambda: self._inner.locks)

    def lock(self, path: str, until: datetime) -> None:
        """Lock the object."""
        self._repeat(lambda: self._inner.lock(path, until))

    def locked_until(self, path: str) -> datetime | None:
        """Return until when the object is locked."""
        return self._repeat(lambda: self._inner.locked_until(path))

    def get_usage(self) -> Usage:
        """Return the space of the store."""
        return self._repeat(self._inner.get_usage)

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove leftovers; the count is that of the last attempt."""
        return self._repeat(lambda: self._inner.clean_temporary(older_than_seconds))

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()

    def _repeat(self, call: Callable[[], _T]) -> _T:
        return self._policy(call)

    def _holds(self, path: str, data: Buffer) -> bool:
        try:
            return self._inner.read(path) == bytes(data)
        except ObjectNotFoundError:
            return False
