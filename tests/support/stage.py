"""A stage on which engine code of several hosts takes turns: one step is one call of the storage, and the test says whose turn it is.

The storage is in memory and its clock stands still until the test moves it. With `single_threaded` the engine starts no threads of its own,
so the same order of turns always gives the same run.
"""

import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import pytest

from lab_backup.blocks import Buffer
from lab_backup.extent import Extent
from lab_backup.operations.catalogue import BackupSummary
from lab_backup.operations.collect import collect
from lab_backup.repository import (
    check,
    create,
    disk_writer,
    packer,
    reader,
    repository,
    staged,
    stored_stream,
    stream_writer,
)
from lab_backup.repository.cache import IndexCache
from lab_backup.repository.create import create_repository
from lab_backup.repository.packer import Packer
from lab_backup.repository.repository import Repository
from lab_backup.repository.sweep import Result
from lab_backup.repository.unlock import unlock
from lab_backup.storage.base import ObjectInfo, StorageBackend, Usage
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up
from support.faulty import CrashError

T = TypeVar("T")
PACK = 3 * (CHUNK + 16)  # so that a small disk makes several packs
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


class InlineExecutor:
    """Stands in for ThreadPoolExecutor: what is submitted is done at once, by whoever submits it."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take what the real one takes."""

    def submit(self, work: Callable[..., T], *args: Any) -> "Future[T]":
        """Do it and return the outcome."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*args))
        except CrashError:
            raise  # a dead process hands on nothing
        except BaseException as error:  # noqa: BLE001  as a real pool does
            future.set_exception(error)
        return future

    def map(self, work: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """Do it for each."""
        return map(work, items)

    def shutdown(self, **_: object) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return


def single_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine work without threads, with small packs, and merge its index early."""
    for module in (check, disk_writer, packer, reader, repository, staged, stored_stream, stream_writer):
        monkeypatch.setattr(module, "ThreadPoolExecutor", InlineExecutor)
    small_packs(monkeypatch)
    for module in (create, repository):
        monkeypatch.setattr(module, "RESERVE_SIZE", 1024)


def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packs and index objects be so small that a backup of a few chunks makes several."""
    monkeypatch.setitem(Packer.__init__.__kwdefaults__ or {}, "pack_size", PACK)
    monkeypatch.setattr(packer, "PACKS_PER_INDEX", 2)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        """Begin somewhere in the future, so that a forgotten real clock is noticed."""
        self.now = BEGIN

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def seconds(self) -> float:
        """Return the seconds since the beginning, as `time.monotonic` does."""
        return (self.now - BEGIN).total_seconds()

    def advance(self, step: timedelta) -> None:
        """Let time pass."""
        self.now += step


class Stage:
    """A repository in memory, its clock, and the actors that work on it. `observers` are told of every change, as operation and path."""

    def __init__(self, directory: Path, *, grace: timedelta = timedelta(hours=24)) -> None:
        """Make an empty repository; caches go below `directory`."""
        self.directory = directory
        self.clock = Clock()
        self.storage = MemoryStorage(clock=self.clock)
        self.config = create_repository(
            self.storage, passphrase=None, chunk_size=CHUNK, compression="none", grace=int(grace.total_seconds())
        )
        self.keys = unlock(self.storage, self.config, None)
        self.observers: list[Callable[[str, str], None]] = []
        self.lag = timedelta(0)  # how long a new object may be missing from lists
        self.torn_lists = False  # whether a list is a look at two moments rather than at one
        self.actors: list[Actor[Any]] = []

    def open(self, storage: StorageBackend | None = None, *, cache: Path | None = None) -> Repository:
        """Open the repository as a new process does, by default with a cache of its own and without taking turns."""
        place = cache or self.directory / secrets.token_hex(4)
        opened = Repository(storage or self.storage, self.config, self.keys, IndexCache(place))
        opened.synchronise()
        return opened

    def actor(self, work: Callable[[StorageBackend], T], *, name: str = "actor") -> "Actor[T]":
        """Put somebody on the stage who does `work` with the storage that he is given; he waits for his first turn."""
        actor = Actor(self, work, name)
        self.actors.append(actor)
        return actor

    def pass_time(self, *, hours: float = 0, minutes: float = 0) -> None:
        """Let time pass."""
        self.clock.advance(timedelta(hours=hours, minutes=minutes))

    def paths(self, prefix: str) -> set[str]:
        """Return the names of the objects below `prefix`, as they are."""
        return {info.path for info in self.storage.list(prefix)}

    def close(self) -> None:
        """Kill whoever is still on the stage."""
        for actor in self.actors:
            actor.kill()


class Actor(Generic[T]):
    """Somebody at work. Between turns he stands before a call of the storage: `call` names it, as operation and path; None at the end."""

    def __init__(self, stage: Stage, work: Callable[[StorageBackend], T], name: str) -> None:
        """Prepare; nothing happens before the first turn."""
        self.stage = stage
        self.name = name
        self.call: str | None = "begin"
        self.result: T | None = None
        self.error: BaseException | None = None
        self._work = work
        self.killed = False
        self._turn = threading.Lock()
        self._done = threading.Lock()
        self._turn.acquire()
        self._done.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether he is through, one way or another."""
        return self.call is None

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self.killed:
                self.result = self._work(StagedStorage(self))
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error
        finally:
            self.call = None
            self._done.release()

    def wait(self, call: str) -> None:
        """Stand before `call` until the next turn; for the actor's own thread."""
        if not self.killed:
            self.call = call
            self._done.release()
            self._turn.acquire()
        if self.killed:
            raise CrashError(f"{self.name} was killed before: {call}")

    def step(self) -> None:
        """Let him make the call before which he stands, and go on to the next."""
        self._turn.release()
        self._done.acquire()

    def run_to(self, call: str) -> None:
        """Let him go on until he stands before a call that begins with `call`."""
        self.step()
        while self.call is not None and not self.call.startswith(call):
            self.step()
        if self.call is None:
            raise AssertionError(f"{self.name} never came to: {call}") from self.error

    def finish(self) -> T:
        """Let him go on to the end; return what he returns, or raise what he raises."""
        while self.call is not None:
            self.step()
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value] # set when there was no error

    def kill(self) -> None:
        """End him here, as kill -9 does: whatever he does from now on does not reach the storage."""
        self.killed = True
        while self.call is not None:
            self.step()
        self._thread.join()


class StagedStorage(StorageBackend):
    """The stage's storage as one actor sees it: every call waits for his turn."""

    def __init__(self, actor: Actor[Any]) -> None:
        """Take turns as `actor`."""
        self._actor = actor
        self._stage = actor.stage
        self._inner = actor.stage.storage

    @property
    def url(self) -> str:
        """The same for all."""
        return self._inner.url

    @property
    def concurrency(self) -> int:
        """The inner store's figure."""
        return self._inner.concurrency

    def _changed(self, operation: str, path: str) -> None:
        for observer in self._stage.observers:
            observer(operation, path)

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store, in turn."""
        self._actor.wait(f"upload {path}")
        self._inner.upload(path, data, metadata)
        self._changed("upload", path)

    def create(self, path: str, data: Buffer) -> None:
        """Create, in turn."""
        self._actor.wait(f"create {path}")
        self._inner.create(path, data)
        self._changed("create", path)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read, in turn."""
        self._actor.wait(f"read {path}")
        return self._inner.read(path, offset, length)

    def delete(self, path: str) -> None:
        """Delete, in turn."""
        self._actor.wait(f"delete {path}")
        self._inner.delete(path)
        self._changed("delete", path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List, in turn; with torn lists in two, so that what moves meanwhile may be seen twice or not at all."""
        self._actor.wait(f"list {prefix}")
        first = [info for info in self._inner.list(prefix) if self._is_listed(info)]
        if not self._stage.torn_lists:
            return iter(first)
        self._actor.wait(f"list-on {prefix}")
        second = [info for info in self._inner.list(prefix) if self._is_listed(info)]
        return iter([info for info in first if _early(info.path)] + [info for info in second if not _early(info.path)])

    def _is_listed(self, info: ObjectInfo) -> bool:
        share = zlib.crc32(info.path.encode()) / 2**32  # some are late, others less so
        return self._stage.clock.now - info.modified >= self._stage.lag * share

    def stat(self, path: str) -> ObjectInfo:
        """Look, in turn."""
        self._actor.wait(f"stat {path}")
        return self._inner.stat(path)

    def get_usage(self) -> Usage:
        """Measure, in turn."""
        self._actor.wait("get_usage")
        return self._inner.get_usage()


def _early(path: str) -> bool:
    return zlib.crc32(path.encode()) % 2 == 0


def blocks(*numbers: int) -> bytes:
    """Return a disk of chunks that differ by their numbers; 0 is a chunk of zeroes."""
    return b"".join(bytes([number]) * CHUNK for number in numbers)


def gc(stage: Stage, *, grace: int | None = None) -> Result:
    """Collect as a host of its own, from beginning to end."""
    with stage.open() as repository:
        return collect(repository, grace=grace)


def writer(
    stage: Stage, content: bytes, *, changes: list[Extent] | None = None, name: str = "guest"
) -> Actor[BackupSummary]:
    """Put somebody on the stage who backs `content` up, with `changes` as an increment."""

    def work(storage: StorageBackend) -> BackupSummary:
        with stage.open(storage) as repository:
            return back_up(repository, content, changes=changes, name=name)

    return stage.actor(work, name="writer")


def collector(stage: Stage, *, grace: int | None = None) -> Actor[Result]:
    """Put somebody on the stage who collects."""

    def work(storage: StorageBackend) -> Result:
        with stage.open(storage) as repository:
            return collect(repository, grace=grace)

    return stage.actor(work, name="collector")
