"""The test of a storage: it finds what is wrong, and leaves nothing but what was there."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_backup.operations.storage_test import StorageReport, check_storage
from lab_backup.storage.base import ObjectExistsError, ObjectInfo, StorageAccessError, StorageBackend
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.s3.storage import S3Storage
from lab_backup.units import MiB
from support.faulty import FaultyStorage
from support.seaweed import Seaweed


def outcomes(report: StorageReport) -> dict[str, str]:
    """Return what came out of each check."""
    return {check.name: check.outcome for check in report.checks}


def small(storage: StorageBackend) -> StorageReport:
    """Test with little data."""
    return check_storage(storage, large=1 * MiB)


def test_sound_storages(tmp_path: Path, seaweed: Seaweed) -> None:
    """A folder, memory and a bucket pass; what was there stays, and nothing is added."""
    bucket, prefix = seaweed.place(locks=True)
    stores: list[StorageBackend] = [
        LocalStorage.create_root(tmp_path / "store"),
        MemoryStorage(),
        S3Storage(bucket, prefix, connection=seaweed.connection()),
    ]
    for storage in stores:
        with closing(storage):
            storage.upload("config", b"ours")
            report = small(storage)
            assert not report.failed
            assert set(outcomes(report).values()) <= {"ok", "warning"}  # a disk of the test machine may be full
            assert report.upload_rate
            assert report.latency_p95
            assert report.locks == storage.locks
            assert [(info.path, info.size) for info in storage.list()] == [("config", 4)]


class Careless(MemoryStorage):
    """Replaces what it should only create."""

    def create(self, path: str, data: bytes) -> None:  # type: ignore[override]  # as a careless store would
        """Store it anyway."""
        self.upload(path, data)


class Undeletable(MemoryStorage):
    """Refuses deletion, as an append-only share does."""

    def delete(self, path: str) -> None:
        """Refuse."""
        raise StorageAccessError(f"{path} may not be deleted")


class Stale(MemoryStorage):
    """Goes on showing what was replaced."""

    def upload(self, path: str, data: bytes, metadata: object = None) -> None:  # type: ignore[override]  # narrower
        """Keep the first."""
        del metadata
        try:
            self.create(path, data)
        except ObjectExistsError:
            return


class Lagging(MemoryStorage):
    """Lists nothing new."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return nothing."""
        del prefix
        return iter(())


def late_clock() -> datetime:
    """Return a time that is an hour behind."""
    return datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    ("make", "name", "outcome"),
    [
        (Careless, "create", "failed"),
        (Stale, "replace", "failed"),
        (Lagging, "list", "failed"),
        (Undeletable, "delete", "warning"),
        (lambda: MemoryStorage(clock=late_clock), "clock", "warning"),
        (lambda: MemoryStorage(capacity=100 * MiB), "space", "warning"),
        (lambda: MemoryStorage(capacity=1 * MiB), "throughput", "failed"),
        (lambda: FaultyStorage(MemoryStorage(), read="F"), "read", "failed"),
        (lambda: FaultyStorage(MemoryStorage(), upload="A"), "write", "failed"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], StorageBackend], name: str, outcome: str) -> None:
    """Each fault is found by its check, with what to do about it where something can be done."""
    report = small(make())
    assert outcomes(report)[name] == outcome
    assert report.failed == (outcome == "failed")


def test_nothing_stays_after_an_interruption() -> None:
    """Ctrl-C in the middle removes what was made."""
    storage = MemoryStorage()

    def interrupt(name: str) -> None:
        if name == "clock":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_storage(storage, large=1000, step=interrupt)
    assert list(storage.list()) == []
