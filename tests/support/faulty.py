"""A store that fails on demand.

Faults are scripted by one short string per operation, one letter per call; after the end of the string all calls work:

    .  works                         E  fails for now, nothing done        L  done, but the answer is lost
    S  no space                      A  access refused                     N  says that the object does not exist
    F  one bit flips on the way      T  only the first half arrives, and the call reports success

`FaultyStorage(inner, upload="..E", read="F")` fails the third upload and damages what the first read returns.
"""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from lab_backup.blocks import Buffer
from lab_backup.storage.base import (
    NoSpaceError,
    ObjectInfo,
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    TransientStorageError,
    Usage,
)

Operation = Literal["upload", "create", "read", "delete", "list", "stat", "get_usage"]
KILLED = 137  # what a shell reports for SIGKILL
_LETTERS = set(".ELSANFT")


class CrashError(BaseException):
    """The process "died" here. Not an Exception, so that no handler of the code under test can survive it."""


@dataclass(frozen=True)
class CrashPoint:
    """Where to die: at the `write`-th write, counted from 1; uploads, creates and deletes are writes.

    `torn` leaves half of the object under its name, as a disk without barriers does after a power cut. With `kill` the process
    really ends, without any clean-up, with status 137.
    """

    write: int
    when: Literal["before", "after", "torn"] = "before"
    kill: bool = False

    def happen(self) -> None:
        """Die."""
        if self.kill:
            os._exit(KILLED)
        raise CrashError(f"crash {self.when} write {self.write}")


class FaultyStorage(StorageBackend):
    """The store `inner` with faults. `log` holds every call as `operation path`, `writes` counts the writes begun.

    `list_lag` hides the objects written by the last that many writes from listings, as an eventually consistent store does.
    After a crash every further call crashes again: the process is dead, whichever thread asks.
    """

    def __init__(
        self,
        inner: StorageBackend,
        *,
        crash: CrashPoint | None = None,
        list_lag: int = 0,
        seed: int = 0,
        **script: str,
    ) -> None:
        """Keep one string of letters per operation in `script`; `seed` decides which bits flip."""
        unknown = set("".join(script.values())) - _LETTERS
        if unknown or not set(script) <= set(get_args(Operation)):
            raise ValueError(f"not a script: {script}")
        self.inner = inner
        self.writes = 0
        self.log: list[str] = []
        self._script = script
        self._crash = crash
        self._list_lag = list_lag
        self._random = random.Random(seed)
        self._calls: Counter[str] = Counter()
        self._written: list[str] = []
        self._dead = False
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        """The inner store's address."""
        return self.inner.url

    @property
    def concurrency(self) -> int:
        """The inner store's figure."""
        return self.inner.concurrency

    @property
    def atomic_create(self) -> bool:
        """What the inner store promises."""
        return self.inner.atomic_create

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data`, or whatever the script makes of it."""
        with self._write("upload", path) as spoil:
            self.inner.upload(path, spoil(data), metadata)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` if the name is free, or whatever the script makes of it."""
        with self._write("create", path) as spoil:
            self.inner.create(path, spoil(data))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object, or whatever the script makes of it."""
        letter = self._enter("read", path)
        data = self._spoil(self.inner.read(path, offset, length), letter)
        _lose(letter, path)
        return bytes(data)

    def delete(self, path: str) -> None:
        """Remove the object."""
        with self._write("delete", path):
            self.inner.delete(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects that the lag does not hide. A scripted failure happens in the middle of the listing."""
        letter = self._enter("list", prefix)
        hidden = set(self._written[-self._list_lag :]) if self._list_lag else set()
        found = [info for info in self.inner.list(prefix) if info.path not in hidden]
        half = len(found) if letter == "." else len(found) // 2
        yield from found[:half]
        _refuse(letter, prefix)
        _lose(letter, prefix)

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        letter = self._enter("stat", path)
        info = self.inner.stat(path)
        _lose(letter, path)
        return info

    @property
    def locks(self) -> bool:
        """Whether the inner store locks."""
        return self.inner.locks

    def lock(self, path: str, until: datetime) -> None:
        """Lock in the inner store, unless dead."""
        self._enter("stat", path)
        self.inner.lock(path, until)

    def locked_until(self, path: str) -> datetime | None:
        """Ask the inner store, unless dead."""
        self._enter("stat", path)
        return self.inner.locked_until(path)

    def get_usage(self) -> Usage:
        """Return the space of the store."""
        letter = self._enter("get_usage", "")
        usage = self.inner.get_usage()
        _lose(letter, "")
        return usage

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove leftovers."""
        return self.inner.clean_temporary(older_than_seconds)

    def close(self) -> None:
        """Close the inner store."""
        self.inner.close()

    def _enter(self, operation: Operation, path: str) -> str:
        """Count the call; return its letter, having raised what it says should happen before anything is done."""
        with self._lock:
            if self._dead:
                raise CrashError("the process has crashed already")
            self.log.append(f"{operation} {path}".rstrip())
            at = self._calls[operation]
            self._calls[operation] += 1
        script = self._script.get(operation, "")
        letter = script[at] if at < len(script) else "."
        if operation != "list":
            _refuse(letter, path)
        return letter

    @contextmanager
    def _write(self, operation: Operation, path: str) -> Iterator[Callable[[Buffer], Buffer]]:
        letter = self._enter(operation, path)
        with self._lock:
            self.writes += 1
            crash = self._crash if self._crash is not None and self._crash.write == self.writes else None
        if crash is not None and crash.when == "before":
            self._die(crash)
        if crash is not None and crash.when == "torn":
            letter = "T"
        yield lambda data: self._spoil(data, letter)
        with self._lock:
            self._written.append(path)
        if crash is not None:
            self._die(crash)
        _lose(letter, path)

    def _die(self, crash: CrashPoint) -> None:
        self._dead = True
        crash.happen()

    def _spoil(self, data: Buffer, letter: str) -> Buffer:
        if letter == "T":
            return memoryview(data)[: len(data) // 2]
        if letter == "F" and len(data):
            spoiled = bytearray(data)
            with self._lock:
                bit = self._random.randrange(len(spoiled) * 8)
            spoiled[bit // 8] ^= 1 << bit % 8
            return spoiled
        return data


def _refuse(letter: str, path: str) -> None:
    if letter == "E":
        raise TransientStorageError(f"scripted: {path} failed for now")
    if letter == "S":
        raise NoSpaceError(f"scripted: no space for {path}")
    if letter == "A":
        raise StorageAccessError(f"scripted: no access to {path}")
    if letter == "N":
        raise ObjectNotFoundError(f"scripted: there is no {path}")


def _lose(letter: str, path: str) -> None:
    if letter == "L":
        raise TransientStorageError(f"scripted: the answer about {path} was lost")
