"""Repetition of calls to a store: what is repeated, how often, after which waits, and that repetition never lies."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    StorageError,
    TransientStorageError,
)
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.retry import RetryingStorage, opened_patiently
from support.faulty import FaultyStorage


def no_sleep(_: float) -> None:
    """Wait not at all."""


CALLS: dict[str, Callable[[StorageBackend], object]] = {
    "upload": lambda store: store.upload("new", b"x"),
    "create": lambda store: store.create("new", b"x"),
    "read": lambda store: store.read("old"),
    "delete": lambda store: store.delete("old"),
    "list": lambda store: list(store.list()),
    "stat": lambda store: store.stat("old"),
    "get_usage": lambda store: store.get_usage(),
}


def faulty(**script: str) -> FaultyStorage:
    """Return a store that holds the object `old` and then follows the script."""
    inner = MemoryStorage()
    inner.upload("old", b"content")
    return FaultyStorage(inner, **script)  # type: ignore[arg-type]  # mypy takes them for the other options too


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("fault", ["E", "L"])
def test_passing_failures_are_repeated(operation: str, fault: str) -> None:
    """Each operation survives as many failures as attempts allow, before or after the deed, with the right result."""
    broken, whole = faulty(**{operation: fault * 3}), faulty()
    store = RetryingStorage(broken, attempts=4, sleep=no_sleep)
    result, expected = CALLS[operation](store), CALLS[operation](whole)
    assert type(result) is type(expected)
    assert {info.path for info in broken.inner.list()} == {info.path for info in whole.inner.list()}
    # A repeated `create` that finds its own object is done: the remaining letters are never reached.
    expected_calls = 2 if (operation, fault) == ("create", "L") else 4
    assert sum(line.startswith(operation) for line in broken.log) == expected_calls


@pytest.mark.parametrize("operation", CALLS)
def test_the_last_failure_is_raised(operation: str) -> None:
    """When every attempt failed the store's own error comes out, after exactly that many calls."""
    broken = faulty(**{operation: "EEEE"})
    with pytest.raises(TransientStorageError, match="scripted"):
        CALLS[operation](RetryingStorage(broken, attempts=3, sleep=no_sleep))
    assert len(broken.log) == 3


@pytest.mark.parametrize(
    ("fault", "expected"), [("S", NoSpaceError), ("A", StorageAccessError), ("N", ObjectNotFoundError)]
)
@pytest.mark.parametrize("operation", CALLS)
def test_lasting_failures_are_not_repeated(operation: str, fault: str, expected: type[StorageError]) -> None:
    """A full disk, a refusal or a missing object is reported at once."""
    broken = faulty(**{operation: fault})
    with pytest.raises(expected):
        CALLS[operation](RetryingStorage(broken, sleep=no_sleep))
    assert len(broken.log) == 1


def test_waits_grow_and_are_random() -> None:
    """Each wait lies below its doubling bound, none above the maximum, and two clients do not wait alike."""
    bounds = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    seen: list[list[float]] = []
    for _ in range(20):
        waits: list[float] = []
        store = RetryingStorage(faulty(stat="E" * 6), attempts=7, base_delay=0.5, max_delay=5.0, sleep=waits.append)
        store.stat("old")
        assert len(waits) == len(bounds)
        assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
        seen.append(waits)
    assert len({tuple(waits) for waits in seen}) == 20
    assert max(waits[4] for waits in seen) > 1.0


def test_repeated_create_recognises_its_own_object() -> None:
    """A `create` whose answer was lost succeeds when repeated, since it finds its own bytes."""
    broken = faulty(create="L")
    RetryingStorage(broken, sleep=no_sleep).create("new", bytearray(b"mine"))
    assert broken.inner.read("new") == b"mine"


def test_repeated_create_does_not_claim_another_object() -> None:
    """A `create` that failed and then finds other bytes has lost, and leaves them."""
    broken = faulty(create="E")
    with pytest.raises(ObjectExistsError):
        RetryingStorage(broken, sleep=no_sleep).create("old", b"mine")
    assert broken.inner.read("old") == b"content"


def test_first_create_never_claims_an_equal_object() -> None:
    """Equal bytes are somebody else's object as long as no attempt of ours may have written them."""
    with pytest.raises(ObjectExistsError):
        RetryingStorage(faulty(), sleep=no_sleep).create("old", b"content")


def test_create_whose_check_fails_for_now() -> None:
    """Also the look at the object that was found is repeated when it fails."""
    broken = faulty(create="L", read="E")
    RetryingStorage(broken, sleep=no_sleep).create("new", b"mine")
    assert broken.inner.read("new") == b"mine"


def test_create_whose_object_vanishes() -> None:
    """Where the object found is gone at the second look the conflict is reported, not success."""
    broken = faulty(create="L", read="N")
    with pytest.raises(ObjectExistsError):
        RetryingStorage(broken, sleep=no_sleep).create("new", b"mine")


def test_broken_listing_repeats_no_object() -> None:
    """A listing that breaks off in the middle, twice, still yields each object exactly once."""
    inner = MemoryStorage()
    for number in range(2500):
        inner.upload(f"a/{number}", b"")
    store = RetryingStorage(FaultyStorage(inner, list="EL"), sleep=no_sleep)
    assert sorted(info.path for info in store.list("a")) == sorted(info.path for info in inner.list("a"))


def test_listing_is_lazy() -> None:
    """Nothing is asked of the store before the first object is wanted."""
    broken = faulty()
    RetryingStorage(broken, sleep=no_sleep).list()
    assert broken.log == []


def test_properties_come_from_the_inner_store() -> None:
    """The wrapper changes neither name nor figures, nor hides that `create` is not atomic."""

    class Odd(MemoryStorage):
        concurrency = 17
        atomic_create = False

    store = RetryingStorage(Odd())
    assert (store.url, store.concurrency, store.atomic_create) == ("memory:", 17, False)


def test_download_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated download first removes what the failed one wrote, and nothing it did not write."""
    removed: list[str] = []
    attempts: list[Path] = []
    inner = MemoryStorage()
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(Path, "unlink", lambda path, *, missing_ok: removed.append(f"{path} {missing_ok}"))

    def download(_: str, destination: Path) -> None:
        attempts.append(destination)
        if len(attempts) < 3:
            raise TransientStorageError("not yet")

    monkeypatch.setattr(inner, "download", download)
    RetryingStorage(inner, sleep=no_sleep).download("old", Path("target"))
    assert removed == ["target True"] * 2


def test_opening_is_waited_for_too() -> None:
    """A store that cannot be opened for a passing reason is tried again; another reason ends it at once."""
    failures: list[Exception] = [TransientStorageError("the server starts"), TransientStorageError("still")]
    waited: list[float] = []

    def make() -> MemoryStorage:
        if failures:
            raise failures.pop()
        return MemoryStorage()

    assert opened_patiently(make, sleep=waited.append).url == "memory:"
    assert len(waited) == 2
    failures.append(StorageError("no such export"))
    with pytest.raises(StorageError, match="no such export"):
        opened_patiently(make, sleep=waited.append)
    assert len(waited) == 2
