"""What `StorageBackend` promises, on every backend. A new backend joins by one line in STORES."""

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry

from lab_backup.storage.base import (
    InvalidPathError,
    ObjectExistsError,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
)
from lab_backup.storage.limited import LimitedStorage
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.metered import MeteredStorage, StorageMetrics
from lab_backup.storage.nfs.storage import NFSStorage
from lab_backup.storage.rate import RateLimit
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.s3.storage import S3Storage
from lab_backup.units import MiB
from support.faulty import FaultyStorage
from support.immutable import unlock_all
from support.waiting import wait_until

T = TypeVar("T")
STORES: dict[str, Callable[[Path], StorageBackend]] = {
    "local": lambda folder: LocalStorage.create_root(folder / "store"),
    "memory": lambda _: MemoryStorage(),
    "retry": lambda folder: RetryingStorage(LocalStorage.create_root(folder / "store")),
    "faulty": lambda _: FaultyStorage(MemoryStorage()),
    "metered": lambda _: MeteredStorage(MemoryStorage(), StorageMetrics(CollectorRegistry())),
    "limited": lambda _: LimitedStorage(MemoryStorage(), upload=RateLimit(10**12), download=RateLimit(10**12), calls=2),
    "retried": lambda _: RetryingStorage(
        FaultyStorage(
            MemoryStorage(),
            upload="EL.L",
            create="LE.L",
            read="EE.E",
            delete="LE",
            list="LE.E",
            stat="E",
            get_usage="E",
        ),
        sleep=lambda _: None,
    ),
}
ODD_PATHS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "./a",
    ".tmp/a",
    "a/.b",
    "a\0b",
    "a\nb",
    "a b",
    "a\\b",
    "a:b",
    "ä",
    "a" * 513,
    "~",
    "%2e%2e/a",
    "a/*",
]


@pytest.fixture(params=[*STORES, "s3", "s3, locking", "smb", "nfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageBackend]:
    """Return an empty store of each kind."""
    if request.param == "smb":
        with closing(request.getfixturevalue("samba").open(secrets.token_hex(6), create=True)) as share:
            yield share
        return
    if request.param == "nfs":
        with closing(request.getfixturevalue("ganesha").open(f"contract/{secrets.token_hex(6)}")) as export:
            yield export
        return
    if request.param.startswith("s3"):
        server = request.getfixturevalue("seaweed")
        bucket, prefix = server.place(locks=request.param == "s3, locking")
        with closing(S3Storage(bucket, prefix, connection=server.connection())) as s3:
            yield s3
        return
    backend = STORES[request.param](tmp_path)
    yield backend
    backend.close()
    unlock_all(tmp_path)


def paths(store: StorageBackend, prefix: str = "") -> list[str]:
    """Return the sorted paths of a listing, so that an object listed twice shows."""
    return sorted(info.path for info in store.list(prefix))


def test_what_was_uploaded_is_read(store: StorageBackend) -> None:
    """Bytes, bytearrays and views are stored as they are; metadata changes nothing."""
    store.upload("a/1", b"bytes", {"kind": "pack"})
    store.upload("a/2", bytearray(b"array"))
    store.upload("a/3", memoryview(b"--view--")[2:6])
    assert [store.read(f"a/{n}") for n in (1, 2, 3)] == [b"bytes", b"array", b"view"]


def test_upload_replaces(store: StorageBackend) -> None:
    """A second upload replaces the first one whole, also with less data."""
    store.upload("a", b"long content")
    store.upload("a", b"short")
    assert store.read("a") == b"short"
    assert store.stat("a").size == 5


def test_buffer_may_be_reused_after_upload(store: StorageBackend) -> None:
    """The store keeps no reference to the caller's buffer."""
    buffer = bytearray(b"first")
    store.upload("a", buffer)
    buffer[:] = b"XXXXX"
    assert store.read("a") == b"first"


def test_empty_object(store: StorageBackend) -> None:
    """An object of no bytes exists, is listed, and reads as nothing."""
    store.upload("empty", b"")
    assert store.read("empty") == b""
    assert store.stat("empty").size == 0
    assert paths(store) == ["empty"]


def test_big_object(store: StorageBackend, tmp_path: Path) -> None:
    """40 MiB survive a round trip, read at once, in ranges, and as a download."""
    data = os.urandom(1 * MiB) * 40
    store.upload("big", data)
    assert store.read("big") == data
    assert store.read("big", 39 * MiB + 7) == data[39 * MiB + 7 :]
    store.download("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (0, 3, b"012"),
        (4, None, b"456789"),
        (4, 2, b"45"),
        (8, 5, b"89"),
        (10, 1, b""),
        (99, 5, b""),
        (99, None, b""),
        (3, 0, b""),
        (0, 1 << 50, b"0123456789"),
    ],
)
def test_ranges(store: StorageBackend, offset: int, length: int | None, expected: bytes) -> None:
    """A range that leaves the object is cut at its end, and one far too long needs no memory."""
    store.upload("a", b"0123456789")
    assert store.read("a", offset, length) == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_negative_ranges_are_refused(store: StorageBackend, offset: int, length: int | None) -> None:
    """A negative offset or length never reads from the end, as a Python slice would."""
    store.upload("a", b"0123456789")
    with pytest.raises(ValueError, match="negative"):
        store.read("a", offset, length)


def test_download_refuses_an_existing_file(store: StorageBackend, tmp_path: Path) -> None:
    """A download never replaces a file."""
    store.upload("a", b"new")
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        store.download("a", target)
    assert target.read_bytes() == b"old"


def test_download_of_nothing_leaves_no_file(store: StorageBackend, tmp_path: Path) -> None:
    """A missing object leaves no empty file behind."""
    with pytest.raises(ObjectNotFoundError):
        store.download("a", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_missing_objects(store: StorageBackend) -> None:
    """What does not exist is not found, whether its folder exists or not."""
    store.upload("a/b", b"")
    for path in ("c", "a/c", "x/y/z", "a/b/c", "a"):
        with pytest.raises(ObjectNotFoundError):
            store.read(path)
        with pytest.raises(ObjectNotFoundError):
            store.stat(path)


def test_create_refuses_an_existing_object(store: StorageBackend) -> None:
    """`create` leaves an existing object as it is, even when the bytes are equal."""
    store.create("a/b", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(ObjectExistsError):
            store.create("a/b", data)
    assert store.read("a/b") == b"first"


def test_create_after_delete(store: StorageBackend) -> None:
    """A deleted name is free again."""
    store.create("a", b"first")
    store.delete("a")
    store.create("a", b"second")
    assert store.read("a") == b"second"


def test_of_many_creators_one_wins(store: StorageBackend) -> None:
    """Of 16 threads that create one path exactly one succeeds, and its bytes are what is read."""
    assert store.atomic_create
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait(timeout=60)
        try:
            store.create("a/contested", bytes([number]) * 1000)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert store.read("a/contested") == bytes([won.index(True)]) * 1000


def test_delete_twice(store: StorageBackend) -> None:
    """Deleting is idempotent, and needs neither object nor folder."""
    store.upload("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was/there")
    store.delete("a/b/c")
    with pytest.raises(ObjectNotFoundError):
        store.stat("a/b")
    assert paths(store) == []


def test_list_goes_down(store: StorageBackend) -> None:
    """A listing holds each object below the prefix once, with its size, and no sibling with the same beginning."""
    for path in ("a/1", "a/b/2", "a/b/c/3", "ab/4", "5"):
        store.upload(path, path.encode())
    assert paths(store) == ["5", "a/1", "a/b/2", "a/b/c/3", "ab/4"]
    assert paths(store, "a") == ["a/1", "a/b/2", "a/b/c/3"]
    assert paths(store, "a/b") == ["a/b/2", "a/b/c/3"]
    assert paths(store, "missing") == []
    assert paths(store, "5") == []
    assert {info.size for info in store.list("a")} == {3, 5, 7}


def test_list_is_complete_while_others_write(store: StorageBackend) -> None:
    """Objects that exist throughout are listed, each once, while others come, go and are replaced."""
    stable = sorted(f"d/{n:03}" for n in range(200))
    for path in stable:
        store.upload(path, b"stable")
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            store.upload(f"d/moving-{number}", b"x")
            store.delete(f"d/moving-{number - 3}")
            number += 1

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(disturb)
        try:
            for _ in range(20):
                assert [path for path in paths(store, "d") if "moving" not in path] == stable
        finally:
            stop.set()
        task.result(timeout=60)


def test_readers_never_see_a_torn_object(store: StorageBackend) -> None:
    """While two writers replace an object, every read and size belongs to one of the versions, whole."""
    versions = [bytes([n]) * size for n, size in ((1, 300_000), (2, 70_000))]
    store.upload("a", versions[0])
    stop = threading.Event()

    def write(version: bytes) -> None:
        while not stop.is_set():
            store.upload("a", version)

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(write, version) for version in versions]
        try:
            # Where every version stays, each look goes through all of them.
            for _ in range(15 if isinstance(store, S3Storage) and store.locks else 200):
                assert _found(store, lambda: store.read("a")) in versions
                assert _found(store, lambda: store.stat("a")).size in {300_000, 70_000}
                assert _found(store, lambda: next(store.list())).size in {300_000, 70_000}
        finally:
            stop.set()
        for task in tasks:
            task.result(timeout=60)


def _found(store: StorageBackend, ask: Callable[[], T]) -> T:
    """Ask; where NFS is mounted by a program, as here, a name that is being replaced is unknown for a moment, which no kernel does."""
    for _ in range(50 if isinstance(store, NFSStorage) else 0):
        with suppress(ObjectNotFoundError, StopIteration):
            return ask()
    return ask()


def test_many_threads_on_many_paths(store: StorageBackend) -> None:
    """Any method may be called from any thread: 8 of them write, read, stat and delete in the same new folders."""

    def work(worker: int) -> None:
        for number in range(20):
            path = f"shared/{number}/{worker}"
            store.upload(path, path.encode())
            assert store.read(path) == path.encode()
            assert store.stat(path).size == len(path)
            if number % 2:
                store.delete(path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert paths(store) == sorted(f"shared/{number}/{worker}" for number in range(0, 20, 2) for worker in range(8))


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_paths_are_refused(store: StorageBackend, path: str) -> None:
    """No method accepts a path that could leave the store or that another store could not hold."""
    calls: list[Callable[[], object]] = [
        lambda: store.upload(path, b""),
        lambda: store.create(path, b""),
        lambda: store.read(path),
        lambda: store.stat(path),
        lambda: store.delete(path),
    ]
    if path:  # the empty prefix is the whole store
        calls.append(lambda: list(store.list(path)))
    for call in calls:
        with pytest.raises(InvalidPathError):
            call()
    assert paths(store) == []


def test_an_object_is_no_folder(store: StorageBackend) -> None:
    """`a` and `a/b` cannot both be objects where there are folders, in whichever order they come."""
    if isinstance(store, S3Storage):
        return  # a bucket has none
    store.upload("a", b"object")
    store.upload("b/c", b"object")
    for path in ("a/b", "b"):
        with pytest.raises(StorageError):
            store.upload(path, b"")
        with pytest.raises(StorageError):
            store.create(path, b"")
    assert paths(store) == ["a", "b/c"]


def test_times_are_now_and_have_a_zone(store: StorageBackend) -> None:
    """`modified` is the time of the upload in UTC, in listings and in `stat`."""
    before = datetime.now(UTC) - timedelta(seconds=5)
    store.upload("a", b"")
    info = store.stat("a")
    assert before < info.modified < datetime.now(UTC) + timedelta(seconds=5)
    assert info.modified.utcoffset() == timedelta(0)
    assert list(store.list()) == [info]


def test_usage_adds_up(store: StorageBackend) -> None:
    """Used and free space are not negative, and no more than there is in total."""
    store.upload("a", bytes(1 * MiB))
    usage = store.get_usage()
    assert usage.used >= 1 * MiB
    if usage.total is not None:
        assert usage.free is not None
        assert 0 <= usage.free <= usage.total - usage.used


def test_locks(store: StorageBackend) -> None:
    """A locked object is not deleted, and its lock is only prolonged; a store that cannot lock says so."""
    store.upload("locked", b"here")
    assert store.locked_until("locked") is None
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    with pytest.raises(ObjectNotFoundError):
        store.locked_until("missing")
    if not store.locks:
        with pytest.raises(StorageError, match="cannot lock"):
            store.lock("locked", until)
        return
    store.lock("locked", until)
    store.lock("locked", until - timedelta(minutes=30))
    assert store.locked_until("locked") == until
    with pytest.raises(ObjectLockedError) as caught:
        store.delete("locked")
    assert caught.value.until == until
    assert store.read("locked") == b"here"
    later = until + timedelta(hours=1)
    store.lock("locked", later)
    assert store.locked_until("locked") == later
    with pytest.raises(ObjectNotFoundError):
        store.lock("missing", later)


def test_a_lock_ends(store: StorageBackend) -> None:
    """Until then the object is neither deleted nor, for who reads it, replaced; afterwards it can be both."""
    if not store.locks:
        return
    for path in ("deleted", "replaced"):
        store.upload(path, b"here")
        store.lock(path, datetime.now(UTC) + timedelta(seconds=2))
    with pytest.raises(ObjectLockedError):
        store.delete("deleted")
    with suppress(ObjectLockedError):
        store.upload("replaced", b"other")
    wait_until(lambda: store.locked_until("deleted") is None and store.locked_until("replaced") is None, 20)
    store.delete("deleted")
    store.upload("replaced", b"new")
    assert store.read("replaced") == b"new"
    assert paths(store) == ["replaced"]


def test_url_and_concurrency(store: StorageBackend) -> None:
    """A store can name itself, and says how many calls at once make sense."""
    assert ":" in store.url
    assert store.concurrency >= 1


def test_clean_temporary_leaves_objects(store: StorageBackend) -> None:
    """Cleaning right after an upload removes no object and finds nothing to clean."""
    store.upload("a", b"x")
    assert store.clean_temporary(0) == 0
    assert paths(store) == ["a"]


def test_close_twice(store: StorageBackend) -> None:
    """Closing is idempotent."""
    store.close()
    store.close()
