"""A live test of a storage: what a repository will need of it, how fast it is, and what is wrong."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Literal

from lab_backup.storage.address import open_storage
from lab_backup.storage.base import (
    ObjectExistsError,
    ObjectLockedError,
    StorageAccessError,
    StorageBackend,
    StorageError,
)
from lab_backup.units import GiB, MiB, format_size

Outcome = Literal["ok", "warning", "failed"]
LARGE = 32 * MiB  # the size of a pack
SMALL = 4096
LOOKS = 20
MAX_SKEW = timedelta(minutes=5)  # more makes dates of backups misleading; safety does not depend on it
LITTLE = 10 * GiB


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what came out, in words, and what to do about it."""

    name: str
    outcome: Outcome
    detail: str
    hint: str | None = None


@dataclass(slots=True)
class StorageReport:
    """All checks; speeds in bytes a second, latencies and clock skew in seconds, sizes in bytes. None where it came to no figure."""

    url: str
    checks: list[Check] = field(default_factory=list)
    latency_median: float | None = None
    latency_p95: float | None = None
    upload_rate: float | None = None
    download_rate: float | None = None
    clock_skew: float | None = None
    free: int | None = None
    locks: bool | None = None
    atomic_create: bool | None = None

    @property
    def failed(self) -> bool:
        """Whether a repository would not work here."""
        return any(check.outcome == "failed" for check in self.checks)

    @property
    def warned(self) -> bool:
        """Whether something needs attention."""
        return any(check.outcome == "warning" for check in self.checks)


def check_storage(
    storage: StorageBackend,
    *,
    large: int = LARGE,
    clock: Callable[[], float] = time.monotonic,
    step: Callable[[str], None] = lambda _: None,
) -> StorageReport:
    """Try the storage out in a folder of its own, which is removed again, also when this is interrupted.

    Nothing else in it is touched. A check that fails does not keep the others from being made, but for the first: what cannot be written
    cannot be tried.
    """
    return _Trial(storage, large, clock, step).run()


class _Trial:
    """One test of one storage."""

    def __init__(
        self, storage: StorageBackend, large: int, clock: Callable[[], float], step: Callable[[str], None]
    ) -> None:
        self._storage = storage
        self._large = large
        self._clock = clock
        self._step = step
        self._folder = f"storage-test-{secrets.token_hex(8)}"
        self._small = secrets.token_bytes(SMALL)
        self._made: list[str] = []
        self._report = StorageReport(storage.url)

    def run(self) -> StorageReport:
        try:
            self._check("write", self._write)
            if not self._report.failed:
                for name, look in (
                    ("read", self._read),
                    ("list", self._list),
                    ("create", self._create),
                    ("replace", self._replace),
                    ("latency", self._latency),
                    ("throughput", self._throughput),
                    ("clock", self._skew),
                    ("space", self._space),
                    ("locking", self._locking),
                ):
                    self._check(name, look)
        finally:
            self._clean()
        return self._report

    def _check(self, name: str, look: Callable[[], Check | str]) -> None:
        self._step(name)
        try:
            found = look()
        except StorageError as error:
            found = Check(name, "failed", error.message, error.hint)
        self._report.checks.append(found if isinstance(found, Check) else Check(name, "ok", found))

    def _path(self, name: str) -> str:
        path = f"{self._folder}/{name}"
        self._made.append(path)
        return path

    # --- what a repository needs ---

    def _write(self) -> str:
        self._storage.upload(self._path("small"), self._small)
        return "an object was written"

    def _read(self) -> Check | str:
        path = f"{self._folder}/small"
        whole, part = self._storage.read(path), self._storage.read(path, 100, 50)
        if whole != self._small or part != self._small[100:150]:
            return Check("read", "failed", "what was read is not what was written", "do not use this storage")
        return "whole objects and ranges are read back unchanged"

    def _list(self) -> Check | str:
        found = {info.path: info.size for info in self._storage.list(self._folder)}
        if found.get(f"{self._folder}/small") != SMALL:
            return Check("list", "failed", "a new object is not in the list", "a storage whose lists lag is not safe")
        return "new objects are listed at once"

    def _create(self) -> Check | str:
        path = self._path("created")
        self._storage.create(path, b"first")
        try:
            self._storage.create(path, b"second")
        except ObjectExistsError:
            pass
        else:
            return Check("create", "failed", "creating an object replaced another one", "do not use this storage")
        self._report.atomic_create = self._storage.atomic_create
        if not self._report.atomic_create:
            return "objects are not replaced by accident, but creating one takes a look before: the server cannot do it in one step"
        return "objects are created in one step, and never replaced by accident"

    def _replace(self) -> Check | str:
        path = f"{self._folder}/small"
        turned = self._small[::-1]
        self._storage.upload(path, turned)
        if self._storage.read(path) != turned:
            return Check("replace", "failed", "a replaced object still reads as before", "do not use this storage")
        return "a replaced object reads as the new one at once"

    # --- figures ---

    def _latency(self) -> str:
        path = f"{self._folder}/small"
        seconds = sorted(self._timed(lambda: self._storage.stat(path)) for _ in range(LOOKS))
        self._report.latency_median, self._report.latency_p95 = median(seconds), seconds[int(0.95 * LOOKS)]
        return f"{self._report.latency_median * 1000:.1f} ms in the middle, {self._report.latency_p95 * 1000:.1f} ms at the 95th of 100"

    def _timed(self, call: Callable[[], object]) -> float:
        start = self._clock()
        call()
        return max(self._clock() - start, 1e-9)

    def _throughput(self) -> str:
        data = secrets.token_bytes(self._large)
        count = self._storage.concurrency
        paths = [self._path(f"large-{number}") for number in range(count)]
        with ThreadPoolExecutor(count) as pool:
            up = self._timed(lambda: list(pool.map(lambda path: self._storage.upload(path, data), paths)))
            down = self._timed(lambda: list(pool.map(self._read_length, paths)))
        self._report.upload_rate = count * self._large / up
        self._report.download_rate = count * self._large / down
        return f"{format_size(round(self._report.upload_rate))}/s up, {format_size(round(self._report.download_rate))}/s down, {count} at once"

    def _read_length(self, path: str) -> None:
        if len(self._storage.read(path)) != self._large:
            raise StorageError(f"{path} came back with another length", hint="do not use this storage")

    def _skew(self) -> Check | str:
        path = self._path("clock")
        before = datetime.now(UTC)
        self._storage.upload(path, b"clock")
        there, after = self._storage.stat(path).modified, datetime.now(UTC)
        ahead = max(there - after, before - there - timedelta(seconds=1), timedelta(0))
        self._report.clock_skew = ahead.total_seconds()
        if ahead > MAX_SKEW:
            return Check(
                "clock",
                "warning",
                f"its clock and this machine's differ by {ahead}",
                "set both by NTP: backups are dated by this one",
            )
        return "its clock and this machine's agree"

    def _space(self) -> Check | str:
        usage = self._storage.get_usage()
        self._report.free = usage.free
        if usage.free is None:
            return f"{format_size(usage.used)} used; it tells no limit"
        if usage.free < LITTLE:
            return Check(
                "space", "warning", f"only {format_size(usage.free)} are free", "make room before it is needed"
            )
        return f"{format_size(usage.free)} free"

    def _locking(self) -> str:
        self._report.locks = self._storage.locks
        return (
            "objects can be locked against deletion"
            if self._report.locks
            else "objects cannot be locked against deletion"
        )

    # --- the end ---

    def _clean(self) -> None:
        """Remove what was made, and say whether that is allowed."""
        refused = self._remove()
        if not self._report.checks or self._report.checks[0].outcome == "failed":
            return
        if refused is not None:
            self._report.checks.append(
                Check(
                    "delete",
                    "warning",
                    f"{self._folder} could not be removed: {refused.message}",
                    "where deletion is refused on purpose, gc needs another key; else allow it, and remove the folder",
                )
            )
        elif any(True for _ in self._leftovers()):
            self._report.checks.append(Check("delete", "failed", "deleted objects are still listed"))
        else:
            self._report.checks.append(Check("delete", "ok", "objects are deleted; nothing of this test is left"))

    def _leftovers(self) -> Iterator[object]:
        try:
            yield from self._storage.list(self._folder)
        except StorageError:
            return

    def _remove(self) -> StorageError | None:
        refused: StorageError | None = None
        for path in self._made:
            try:
                self._storage.delete(path)
            except (StorageAccessError, ObjectLockedError) as error:
                refused = error
            except StorageError as error:
                refused = refused or error
        return refused


@contextmanager
def opened_for_test(url: str) -> Iterator[StorageBackend]:
    """Open the storage at `url` for a test. Raises UsageError, StorageError."""
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.close()
