"""The store that fails on demand: a fault that does not happen would let every fault test pass."""

import pytest

from lab_backup.storage.base import ObjectNotFoundError, TransientStorageError
from lab_backup.storage.memory import MemoryStorage
from support.faulty import CrashError, CrashPoint, FaultyStorage


def test_letters_apply_to_their_call() -> None:
    """The third letter is the third call's, other operations are untouched, and after the end all is well."""
    store = FaultyStorage(MemoryStorage(), upload="..E")
    store.upload("1", b"")
    store.upload("2", b"")
    store.create("other", b"")
    with pytest.raises(TransientStorageError):
        store.upload("3", b"")
    store.upload("4", b"")
    assert sorted(info.path for info in store.list()) == ["1", "2", "4", "other"]


def test_lost_answer_is_a_deed() -> None:
    """`L` does what was asked before it fails."""
    store = FaultyStorage(MemoryStorage(), upload="L")
    with pytest.raises(TransientStorageError):
        store.upload("a", b"x")
    assert store.read("a") == b"x"


def test_flips_change_one_bit() -> None:
    """`F` changes exactly one bit, of what is read or of what is stored."""
    store = FaultyStorage(MemoryStorage(), read="F", upload=".F")
    store.upload("a", bytes(100))
    assert sum(store.read("a")).bit_count() == 1
    store.upload("b", bytes(100))
    assert sum(value.bit_count() for value in store.inner.read("b")) == 1
    assert store.read("a") == bytes(100)


def test_torn_upload_reports_success() -> None:
    """`T` stores the first half and says nothing."""
    store = FaultyStorage(MemoryStorage(), upload="T")
    store.upload("a", b"12345678")
    assert store.read("a") == b"1234"


def test_not_found_lies() -> None:
    """`N` denies an object that is there."""
    store = FaultyStorage(MemoryStorage(), read="N")
    store.upload("a", b"")
    with pytest.raises(ObjectNotFoundError):
        store.read("a")


@pytest.mark.parametrize(
    ("when", "expected"), [("before", {"1": 4}), ("after", {"1": 4, "2": 4}), ("torn", {"1": 4, "2": 2})]
)
def test_crash_at_a_write(when: str, expected: dict[str, int]) -> None:
    """The crash happens at the write that was named, does what `when` says, and the store stays dead."""
    store = FaultyStorage(MemoryStorage(), crash=CrashPoint(2, when))  # type: ignore[arg-type]  # parametrised
    store.upload("1", b"1234")
    with pytest.raises(CrashError):
        store.create("2", b"1234")
    with pytest.raises(CrashError):
        store.upload("3", b"1234")
    with pytest.raises(CrashError):
        store.read("1")
    assert {info.path: info.size for info in store.inner.list()} == expected


def test_deletes_count_as_writes() -> None:
    """A crash can be put between two deletions, and `writes` tells how many points there are."""
    store = FaultyStorage(MemoryStorage(), crash=CrashPoint(3))
    store.upload("1", b"")
    store.delete("1")
    with pytest.raises(CrashError):
        store.delete("2")
    assert store.writes == 3
    assert store.log == ["upload 1", "delete 1", "delete 2"]


def test_lagging_list_hides_the_newest() -> None:
    """With a lag of two the last two objects are not listed, but can be read."""
    store = FaultyStorage(MemoryStorage(), list_lag=2)
    for name in "1234":
        store.upload(name, b"x")
    assert sorted(info.path for info in store.list()) == ["1", "2"]
    assert store.read("4") == b"x"


@pytest.mark.parametrize("script", [{"upload": "..x"}, {"uplaod": "E"}])
def test_misspelt_scripts_are_refused(script: dict[str, str]) -> None:
    """A fault that could never happen is an error of the test."""
    with pytest.raises(ValueError, match="not a script"):
        FaultyStorage(MemoryStorage(), **script)  # type: ignore[arg-type]  # mypy takes them for the other options too
