"""A store whose calls are counted and timed, for whoever watches it by Prometheus."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from lab_backup.blocks import Buffer
from lab_backup.storage.base import ObjectExistsError, ObjectInfo, ObjectNotFoundError, StorageBackend, Usage

_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)  # seconds: from a local file to a store in trouble


class StorageMetrics:
    """What calls of storages cost, by the storage's address: how many, with which outcome, how long, how many bytes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics in `registry`. Raises ValueError where it has them already."""
        self.requests = Counter(
            "lab_backup_storage_requests",
            "Calls of a storage, repetitions included; outcome is ok or the name of an error.",
            ["storage", "operation", "outcome"],
            registry=registry,
        )
        self.bytes = Counter(
            "lab_backup_storage_bytes",
            "Bytes of objects that went up to a storage or came down from it.",
            ["storage", "direction"],
            registry=registry,
        )
        self.seconds = Histogram(
            "lab_backup_storage_request_seconds",
            "How long calls took.",
            ["storage", "operation"],
            buckets=_BUCKETS,
            registry=registry,
        )


class MeteredStorage(StorageBackend):
    """The store `inner`, with every call counted in `metrics`. What is asked and found absent, or present, is no error."""

    def __init__(self, inner: StorageBackend, metrics: StorageMetrics) -> None:
        """Wrap `inner`, which `close` closes too. Below retries, so that each attempt counts."""
        self._inner = inner
        self._metrics = metrics

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
        return self._inner.atomic_create

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data`."""
        with self._counted("upload"):
            self._inner.upload(path, data, metadata)
        self._moved("up", memoryview(data).nbytes)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` if the name is free."""
        with self._counted("create"):
            self._inner.create(path, data)
        self._moved("up", memoryview(data).nbytes)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object."""
        with self._counted("read"):
            data = self._inner.read(path, offset, length)
        self._moved("down", len(data))
        return data

    def download(self, path: str, destination: Path) -> None:
        """Write the object to the new file `destination`."""
        with self._counted("download"):
            self._inner.download(path, destination)
        self._moved("down", destination.stat().st_size)

    def delete(self, path: str) -> None:
        """Remove the object."""
        with self._counted("delete"):
            self._inner.delete(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`. The time is that of the whole listing, with what its reader does meanwhile."""
        with self._counted("list"):
            yield from self._inner.list(prefix)

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        with self._counted("stat"):
            return self._inner.stat(path)

    @property
    def locks(self) -> bool:
        """Whether the inner store locks objects."""
        return self._inner.locks

    def lock(self, path: str, until: datetime) -> None:
        """Lock the object."""
        with self._counted("lock"):
            self._inner.lock(path, until)

    def locked_until(self, path: str) -> datetime | None:
        """Return until when the object is locked."""
        with self._counted("locked_until"):
            return self._inner.locked_until(path)

    def get_usage(self) -> Usage:
        """Return the space of the store."""
        with self._counted("get_usage"):
            return self._inner.get_usage()

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove leftovers."""
        with self._counted("clean_temporary"):
            return self._inner.clean_temporary(older_than_seconds)

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()

    @contextmanager
    def _counted(self, operation: str) -> Iterator[None]:
        begun, outcome = time.monotonic(), "ok"
        try:
            yield
        except (ObjectNotFoundError, ObjectExistsError, GeneratorExit):
            raise
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.requests.labels(self.url, operation, outcome).inc()
            self._metrics.seconds.labels(self.url, operation).observe(time.monotonic() - begun)

    def _moved(self, direction: str, count: int) -> None:
        self._metrics.bytes.labels(self.url, direction).inc(count)
