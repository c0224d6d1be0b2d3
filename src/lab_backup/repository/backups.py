"""The backups in a repository: listing, finding, marking, removing manifests."""

import re
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import msgspec

from lab_backup.errors import AmbiguousError, UsageError
from lab_backup.repository import manifest as manifests
from lab_backup.repository import marks
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import BackupNotFoundError, DamagedError, NewerVersionError
from lab_backup.repository.immutability import Locks, last_readable
from lab_backup.repository.manifest import Manifest
from lab_backup.repository.marks import Mark, MarkKind, MarkValue, State, StoredMark
from lab_backup.repository.repository import Repository
from lab_backup.storage.base import ObjectLockedError, ObjectNotFoundError

MIN_PREFIX = 4  # hexadecimal characters of an id that a person may abbreviate it to


Unreadable = DamagedError | NewerVersionError


class Backup(NamedTuple):
    """A backup: its manifest, what holds about it now, and the SHA-256 of its manifest."""

    manifest: Manifest
    state: State
    checksum: str

    @property
    def id(self) -> str:
        """The backup's id, 32 hexadecimal characters."""
        return self.manifest.backup


class Backups:
    """All backups of one repository. Each call looks at the storage; nothing is remembered but immutable objects."""

    def __init__(self, repository: Repository) -> None:
        """Look into `repository`."""
        self._repository = repository
        self.damaged: dict[str, Unreadable] = {}  # object paths that the last listing could not read
        self.given_up: dict[str, State] = {}  # by their ids: those with unreadable manifests that are marked as deleted
        self.keeping: list[str] = []  # object paths of the marks that keep a backup, as of the last listing

    def all(self) -> list[Backup]:
        """Return every readable backup, oldest first; what is not readable is left in `damaged`.

        One that is dated later than the storage got it was made by a host whose clock is ahead: then the storage's time counts.
        """
        self.damaged, self.keeping, self.given_up = {}, [], {}
        stored = {info.path: info.modified for info in self._repository.storage.list(manifests.PREFIX)}
        found = {}
        for path, payload in self._repository.read_cached(Kind.MANIFEST, manifests.PREFIX, set(stored)):
            try:
                found[path] = self._decode(path, payload)
            except (DamagedError, NewerVersionError) as error:
                self.damaged[path] = error
        states = self._states()
        self.given_up = {
            backup_id: states[backup_id]
            for path in self.damaged
            if (backup_id := manifests.id_of(path)) and backup_id in states and states[backup_id].deleted
        }
        backups = [
            Backup(manifest, states.get(manifest.backup, State()), checksum) for manifest, checksum in found.values()
        ]
        return sorted(
            backups, key=lambda backup: (min(backup.manifest.when, stored[manifests.path(backup.id)]), backup.id)
        )

    def _decode(self, path: str, payload: bytes | Unreadable) -> tuple[Manifest, str]:
        if isinstance(payload, (DamagedError, NewerVersionError)):
            raise payload
        backup_id = path.removeprefix(f"{manifests.PREFIX}/")
        return manifests.decode(payload, backup_id, self._repository.config.id), manifests.checksum(payload)

    def _states(self) -> dict[str, State]:
        grouped: dict[str, list[StoredMark]] = {}
        infos = {info.path: info for info in self._repository.storage.list(marks.PREFIX)}
        for path, payload in self._repository.read_cached(Kind.MARK, marks.PREFIX, set(infos)):
            try:
                if isinstance(payload, (DamagedError, NewerVersionError)):
                    raise payload
                mark = marks.decode(payload, path)
            except (DamagedError, NewerVersionError) as error:
                self.damaged[path] = error
                continue
            grouped.setdefault(mark.backup, []).append(StoredMark(path=path, mark=mark, modified=infos[path].modified))
            if marks.keeps(mark):
                self.keeping.append(path)
        return {backup_id: marks.fold(stored) for backup_id, stored in grouped.items()}

    def marks(self, backup_id: str) -> list[StoredMark]:
        """Return the readable marks of one backup."""
        infos = {info.path: info for info in self._repository.storage.list(f"{marks.PREFIX}/{backup_id}")}
        stored = []
        for path, info in infos.items():
            try:
                mark = marks.decode(self._repository.get_object(Kind.MARK, path), path)
            except (DamagedError, ObjectNotFoundError):
                continue
            stored.append(StoredMark(path=path, mark=mark, modified=info.modified))
        return stored

    def exists(self, backup_id: str) -> bool:
        """Whether the backup's manifest is in the storage at this moment."""
        try:
            self._repository.storage.stat(manifests.path(backup_id))
        except ObjectNotFoundError:
            return False
        return True

    def latest(self, kind: str, source_id: str) -> Backup | None:
        """Return the newest backup of a source that is not marked as deleted, or None."""
        fitting = [
            backup
            for backup in self.all()
            if backup.manifest.source.kind == kind
            and backup.manifest.source.id == source_id
            and backup.state.deleted is None
        ]
        return fitting[-1] if fitting else None

    def find(self, spec: str) -> Backup:
        """Return the backup that `spec` names: an id, a prefix of one, `latest:NAME` or `latest:KIND/NAME`.

        A source's id may stand in place of its name. Raises BackupNotFoundError, AmbiguousError, UsageError.
        """
        backups = self.all()
        if spec.startswith("latest:"):
            return self._latest_named(spec.removeprefix("latest:"), backups)
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},32}}", spec):
            raise UsageError(
                f"{spec!r} is not a backup",
                hint=f"give an id, at least {MIN_PREFIX} characters of one, or latest:vm/NAME",
            )
        fitting = {backup.id: backup for backup in backups if backup.id.startswith(spec)}
        broken = {manifests.id_of(path) or "": error for path, error in self.damaged.items()}
        ids = sorted({backup_id for backup_id in (*fitting, *broken) if backup_id.startswith(spec)})
        if not ids:
            raise BackupNotFoundError(f"there is no backup {spec}", hint="see: lab-backup list")
        if len(ids) > 1:
            raise AmbiguousError(f"{spec} fits {len(ids)} backups: {', '.join(ids[:8])}", hint="give more characters")
        if ids[0] in broken:
            raise broken[ids[0]]
        return fitting[ids[0]]

    @staticmethod
    def _latest_named(name: str, backups: list[Backup]) -> Backup:
        kind, _, rest = name.partition("/")
        fitting = []
        for backup in backups:
            source = backup.manifest.source
            plain = name in {source.name, source.id}
            if backup.state.deleted is None and (plain or (kind == source.kind and rest in {source.name, source.id})):
                fitting.append(backup)
        sources = {(backup.manifest.source.kind, backup.manifest.source.id) for backup in fitting}
        if not fitting:
            raise BackupNotFoundError(f"there is no backup of {name}", hint="see: lab-backup list")
        if len(sources) > 1:
            raise AmbiguousError(
                f"{name} is the name of several sources: {', '.join(f'latest:{kind}/{identity}' for kind, identity in sorted(sources))}",
                hint="use one of these",
            )
        return fitting[-1]

    def mark(
        self, backup_id: str, kind: MarkKind, value: MarkValue, *, time: str, by: str = "", reason: str = ""
    ) -> datetime:
        """Record a statement about a backup, durably; it overrules earlier ones of its kind, which then go.

        One that keeps the backup is locked as the backup is: whoever removed it could put an old mark of deletion back.
        Returns when that was, by the storage's clock.
        """
        existing = self.marks(backup_id)
        path = marks.new_path(backup_id, existing)
        mark = Mark(backup=backup_id, kind=kind, value=value, time=time, by=by, reason=reason)
        payload = msgspec.json.encode(mark)
        self._repository.storage_full_safe(lambda: self._repository.put_object(Kind.MARK, path, payload))
        try:
            made = self._repository.storage.stat(path).modified
        except ObjectNotFoundError:  # overruled already
            made = self._repository.clock()
        if marks.keeps(mark) and self._repository.storage.locks:
            Locks(self._repository, last_readable(self._repository)).extend([path], now=made, removable=True)
        for stored in existing:
            if stored.mark.kind == kind:
                with suppress(ObjectLockedError):  # ours overrules it all the same
                    self._repository.storage.delete(stored.path)
        return made

    def remove(self, backup_id: str) -> None:
        """Delete the manifest, then its marks. What it refers to is garbage from then on. Marks that are locked are left to a later collection."""
        self._repository.storage.delete(manifests.path(backup_id))
        for info in list(self._repository.storage.list(f"{marks.PREFIX}/{backup_id}")):
            with suppress(ObjectLockedError):
                self._repository.storage.delete(info.path)
