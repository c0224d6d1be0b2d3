"""How long what a backup needs cannot be removed by anybody: the repository's promise, and the storage's locks that keep it.

Locks are laid on what is new, and prolonged in steps on what newer backups still need. Why that suffices is in `docs/format/immutability.md`.
"""

import random
import secrets
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import msgspec

from lab_backup.errors import UsageError
from lab_backup.repository.config import COPY, PATH
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError, RepositoryError
from lab_backup.repository.repository import Repository
from lab_backup.repository.unlock import KEYS
from lab_backup.repository.untrusted_json import parse
from lab_backup.storage.base import (
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    StorageError,
    TransientStorageError,
)

IMMUTABILITY = "immutability"
SAMPLES = 16  # objects of each sort whose locks a collection looks at, to notice that what it knows is not so
_PART = 1000
_BLUR = timedelta(seconds=2)  # stores keep whole seconds
STEPS = 4  # a lock is laid for a quarter longer than promised, and prolonged when that quarter is over
MAX_PERIOD = timedelta(days=36_500)
_KNOWN = "locked/"  # in the local copy: until when we have seen an object locked; never in the storage
_UNTIL = struct.Struct("<d")


class Statement(msgspec.Struct, frozen=True):
    """The object that says how long: `seconds` (0: not at all). `time` and `by` are for people.

    The highest `number` counts: the age of the object would not do, for an old one that is put back looks new.
    """

    seconds: Annotated[int, msgspec.Meta(ge=0, le=int(MAX_PERIOD.total_seconds()))]
    number: Annotated[int, msgspec.Meta(ge=1)]
    time: str = ""
    by: str = ""


def promised(repository: Repository) -> timedelta:
    """Return for how long backups in this repository are locked; nothing where they are not.

    Raises DamagedError where that cannot be told, because a statement was damaged after the last one that can be read.
    """
    newest = _newest(repository)
    return timedelta(seconds=newest.seconds) if newest is not None else timedelta()


def last_readable(repository: Repository) -> timedelta:
    """Return what was promised by the last statement that can be read: enough to hold on to what is locked, whatever was damaged since."""
    newest = _newest(repository, strict=False)
    return timedelta(seconds=newest.seconds) if newest is not None else timedelta()


def _newest(repository: Repository, *, strict: bool = True) -> Statement | None:
    """Return the statement that counts; unless `strict`, of those that can be read."""
    newest: Statement | None = None
    failure: DamagedError | None = None
    for info in sorted(repository.storage.list(IMMUTABILITY), key=_age):
        try:
            statement = parse(repository.get_object(Kind.IMMUTABILITY, info.path), Statement, info.path)
        except ObjectNotFoundError:
            continue
        except DamagedError as error:
            failure = error
            continue
        if newest is None or (statement.number, statement.seconds) > (newest.number, newest.seconds):
            newest, failure = statement, None
    if failure is not None and strict:
        raise DamagedError(
            f"it cannot be read how long backups are to be locked ({failure})",
            hint="say it again: lab-backup repo immutable 30d",
        )
    return newest


def promise(repository: Repository, period: timedelta, *, by: str) -> None:
    """Promise from now on to lock backups for `period`, or with none to lock them no more. Locks that are there stay until they end.

    Locks what opens the repository; its data is locked by the next backup and the next collection. Raises UsageError where the storage cannot lock.
    """
    storage = repository.storage
    if not timedelta() <= period <= MAX_PERIOD:
        raise UsageError(f"backups cannot be locked for {period}", hint=f"at most {MAX_PERIOD.days} days")
    if period:
        check_can_lock(storage)
        # Before anything is promised: whether we may lock at all.
        Locks(repository, period).extend(_configs(repository), now=repository.clock())
    before = list(storage.list(IMMUTABILITY))
    last = _newest(repository, strict=False)
    path = f"{IMMUTABILITY}/{secrets.token_hex(16)}"
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    number = 1 if last is None else last.number + 1
    statement = Statement(seconds=int(period.total_seconds()), number=number, time=time, by=by)
    repository.put_object(Kind.IMMUTABILITY, path, msgspec.json.encode(statement))
    Locks(repository, period).extend(head_objects(repository), now=storage.stat(path).modified)
    for info in before:
        try:
            storage.delete(info.path)
        except ObjectLockedError:
            continue  # its number is lower than ours, which is all that counts


def check_can_lock(storage: StorageBackend) -> None:
    """Raise UsageError where the storage cannot lock objects."""
    if not storage.locks:
        raise UsageError(
            f"{storage.url} cannot lock objects",
            hint="use a bucket that was made with Object Lock, or a local file system with immutable files, as root",
        )


def head_objects(repository: Repository) -> list[str]:
    """Return the objects without which nothing can be opened: config, its copy, keys, and the promise itself."""
    storage = repository.storage
    found = [info.path for prefix in (KEYS, IMMUTABILITY) for info in storage.list(prefix)]
    return [*found, *_configs(repository)]


def _configs(repository: Repository) -> list[str]:
    return [path for path, size in repository.sizes([PATH, COPY]) if size is not None]


def _age(info: ObjectInfo) -> tuple[datetime, str]:
    return info.modified, info.path


class Locks:
    """Lays and prolongs locks. Remembers what it has seen locked, so that nothing is asked for again before its time."""

    def __init__(self, repository: Repository, period: timedelta) -> None:
        """Lock for `period`; for none nothing is done at all."""
        self._repository = repository
        self._period = period
        self.refused: dict[str, StorageError] = {}  # what cannot be locked

    def extend(self, paths: Iterable[str], *, now: datetime, removable: bool = False) -> int:
        """Let each of these objects be locked for at least the period from `now`, the storage's time; return how many had to be prolonged.

        What is locked for long enough already costs no request. With `removable` others may remove some of them meanwhile, which are passed over,
        and so is what can never be locked, such as a symbolic link that somebody put there: it is left in `refused`.
        Raises RepositoryError where the storage cannot lock any more, and ObjectNotFoundError.
        """
        if not self._period:
            return 0
        storage, cache = self._repository.storage, self._repository.cache
        until, enough = now + self._period * (STEPS + 1) / STEPS, now + self._period
        due = [path for path in sorted(set(paths)) if (known := self._known(path)) is None or known < enough]
        if not due:
            return 0
        if not storage.locks:
            raise RepositoryError(
                f"this repository promises to lock its backups, but {storage.url} cannot lock objects",
                hint="check the credentials and the bucket, or take the promise back: lab-backup repo immutable off",
            )

        lock = partial(self._lock, until=until, removable=removable)
        count = 0
        with ThreadPoolExecutor(storage.concurrency, thread_name_prefix="lock") as pool:
            # In parts, each remembered: who is interrupted does not begin anew.
            for at in range(0, len(due), _PART):
                part = due[at : at + _PART]
                locked = [path for path, done in zip(part, pool.map(lock, part), strict=True) if done]
                cache.put_objects({f"{_KNOWN}{path}": _UNTIL.pack(until.timestamp()) for path in locked})
                count += len(locked)
        if not count and any(isinstance(error, StorageAccessError) for error in self.refused.values()):
            storage.lock(PATH, until)  # is it about single objects, or may we not lock at all?
        return count

    def _lock(self, path: str, *, until: datetime, removable: bool) -> bool:
        try:
            self._repository.storage.lock(path, until)
        except ObjectNotFoundError:
            if not removable:
                raise
            return False
        except TransientStorageError:
            raise
        except StorageError as error:
            if not removable:
                raise
            self.refused[path] = error
            return False
        return True

    def check(self, always: Iterable[str], *others: Sequence[str], now: datetime) -> bool:
        """Ask the storage whether what we know is so, of `always` and of a few of each of the others; where it is not, forget all of it and return False.

        Objects may have been written anew, copied without their locks, or unlocked by somebody who may.
        """
        if not self._period or not self._repository.storage.locks:
            return True
        pick = random.SystemRandom().sample
        samples = [path for paths in others for path in pick(paths, min(SAMPLES, len(paths)))]
        if all(self._holds(path, now) for path in (*always, *samples)):
            return True
        self._repository.cache.drop_objects(_KNOWN, set())
        return False

    def _holds(self, path: str, now: datetime) -> bool:
        known = self._known(path)
        if known is None or known <= now:
            return True
        try:
            until = self._repository.storage.locked_until(path)
        except ObjectNotFoundError:
            return True  # what is gone is not locked by us either
        return until is not None and until >= known - _BLUR

    def _known(self, path: str) -> datetime | None:
        data = self._repository.cache.get_object(f"{_KNOWN}{path}")
        return datetime.fromtimestamp(_UNTIL.unpack(data)[0], UTC) if data is not None else None

    def forget(self, present: Iterable[str]) -> None:
        """Forget what is known of objects other than `present`."""
        if self._period:
            self._repository.cache.drop_objects(_KNOWN, {f"{_KNOWN}{path}" for path in present})
