"""What the memory store adds to the contract: a limit and a clock."""

from datetime import UTC, datetime, timedelta

import pytest

from lab_backup.storage.base import NoSpaceError, ObjectLockedError, Usage
from lab_backup.storage.memory import MemoryStorage


def test_capacity() -> None:
    """A full store refuses, keeps what it has, counts a replacement once, and has room after a deletion."""
    store = MemoryStorage(capacity=10)
    store.upload("a", b"12345678")
    for path, data in (("b", b"123"), ("a", b"12345678901")):
        with pytest.raises(NoSpaceError):
            store.upload(path, data)
    assert store.get_usage() == Usage(10, 8, 2)
    store.upload("a", b"1234567890")
    store.delete("a")
    store.create("b", b"123")
    assert store.get_usage() == Usage(10, 3, 7)


def test_clock() -> None:
    """Objects get the time of the clock that the test brought."""
    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    store = MemoryStorage(clock=lambda: moment)
    store.upload("a", b"")
    assert store.stat("a").modified == moment


def test_locks_end_by_the_clock() -> None:
    """A locked object is neither replaced nor deleted until the clock says so."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    store = MemoryStorage(clock=lambda: now)
    store.upload("a", b"old")
    store.lock("a", now + timedelta(days=1))
    with pytest.raises(ObjectLockedError, match="2026-01-02"):
        store.upload("a", b"new")
    with pytest.raises(ObjectLockedError, match="2026-01-02"):
        store.delete("a")
    now += timedelta(days=1, seconds=1)
    assert store.locked_until("a") is None
    store.upload("a", b"new")
    store.delete("a")
    assert list(store.list()) == []
