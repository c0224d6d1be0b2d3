"""What a collection does to the storage: it condemns and removes packs, passes over what is locked, and counts all that."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import pack_path
from lab_backup.repository.repository import CONDEMNED, REMOVED, PackList, Repository
from lab_backup.repository.untrusted_json import parse
from lab_backup.storage.base import (
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    TransientStorageError,
)


@dataclass(slots=True)
class Result:
    """What was done, or with a dry run would be. Bytes are of whole packs."""

    backups_removed: list[str] = field(default_factory=list)
    packs_condemned: int = 0
    bytes_condemned: int = 0
    packs_removed: int = 0
    bytes_removed: int = 0
    packs_spared: int = 0
    packs_repacked: int = 0
    bytes_live: int = 0
    missing_chunks: int = 0
    objects_locked: int = 0  # that would be removed, if they were not locked
    bytes_locked: int = 0
    locked_until: datetime | None = None  # when the last of them can go
    objects_prolonged: int = 0
    notes: list[str] = field(default_factory=list)


class Sweeper:
    """Removes, and says what it could not remove. One for each collection run."""

    def __init__(self, repository: Repository, *, exclusive: bool) -> None:
        """Sweep in `repository`; `exclusive`: nobody else uses it. `now`, the storage's time, is set when the run begins."""
        self._repository = repository
        self.locked: set[str] = set()  # objects that are to go, but are locked
        self.refused: dict[str, StorageAccessError] = {}  # objects that are to go, but nobody lets us
        self.exclusive = exclusive
        self.now = datetime.min.replace(tzinfo=UTC)
        self.result = Result()
        self.written: set[str] = set()  # index objects and packs that backups rely on from now on

    def age(self, info: ObjectInfo) -> timedelta:
        """Return how old an object is, by the storage's clock."""
        return self.now - info.modified

    def is_locked(self, path: str) -> bool:
        """Whether the object cannot go yet; then it is counted among those that will have to."""
        storage = self._repository.storage
        if not storage.locks:
            return False
        try:
            until = storage.locked_until(path)
        except ObjectNotFoundError:
            return False
        except (StorageAccessError, TransientStorageError):
            raise
        except StorageError:  # nothing of ours, such as a symbolic link; whether it can go is seen when it is deleted
            return False
        if until is not None:
            self.count_locked(path, until)
        return until is not None

    def count_locked(self, path: str, until: datetime) -> None:
        """Count the object among those that stay because they are locked until then."""
        result = self.result
        if path not in self.locked:
            self.locked.add(path)
            result.objects_locked += 1
            result.bytes_locked += self._repository.storage.stat(path).size
        result.locked_until = max(until, result.locked_until or until)

    def delete(self, path: str) -> bool:
        """Delete an object, or leave it to a later collection where it is locked; return whether it is gone."""
        try:
            self._repository.storage.delete(path)
        except ObjectLockedError as error:
            self.count_locked(path, error.until)
            return False
        except StorageAccessError as error:  # somebody may hold this one: a legal hold, another mode of locks
            self.refused[path] = error
            return False
        return True

    def delete_packs(self, packs: set[bytes]) -> None:
        """Delete packs that nobody's index names any more."""
        for pack_id in sorted(packs):
            self.delete(pack_path(pack_id))

    def remove(self, packs: set[bytes]) -> None:
        """Take packs out of everybody's index, then delete them. In this order: an index entry must never lead nowhere."""
        if packs:
            self.publish(Kind.REMOVED, REMOVED, packs)
            self.delete_packs(packs)

    def condemn(self, packs: set[bytes]) -> None:
        """Say of packs that they are to be removed after the grace period."""
        if packs:
            self.publish(Kind.CONDEMNED, CONDEMNED, packs)

    def publish(self, kind: Kind, prefix: str, packs: set[bytes], *, instead_of: Iterable[str] = ()) -> None:
        """Store a list of packs, which stands in for lists that cannot be read."""
        names = sorted(pack.hex() for pack in packs)
        payload = msgspec.json.encode(PackList(packs=names, surveyed=self.now, instead_of=sorted(instead_of)))
        path = f"{prefix}/{secrets.token_hex(16)}"
        self._repository.storage_full_safe(lambda: self._repository.put_object(kind, path, payload))

    def read_list(self, kind: Kind, path: str) -> PackList:
        """Return the list, an empty one where it is gone or damaged."""
        try:
            return parse(self._repository.get_object(kind, path), PackList, path)
        except (ObjectNotFoundError, DamagedError):
            return PackList(packs=[])
