"""Garbage collection beside running writers, readers and other collectors, on any number of hosts.

Nothing is removed at once. A pack that no backup refers to is *condemned*: a dated list says so. After the grace period all manifests are read again, and what is
still unreferred to is *removed*: first a list that takes it out of everybody's index, then the pack. Ages are the storage's, never ours.
Why no race loses data is in `docs/format/concurrency.md`, step by step.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from lab_backup.errors import BusyError, UsageError
from lab_backup.repository import index, marks
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.cache import Location
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.live_set import LiveSet, Place, remove_leftovers
from lab_backup.repository.pack import ENTRY, ID, PACK_ID, pack_path
from lab_backup.repository.packer import Packer
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import (
    CONDEMNED,
    DAMAGED,
    INDEX,
    LEASES,
    REMOVED,
    DamageList,
    PackList,
    Repository,
)
from lab_backup.repository.session import LOOK_AGAIN
from lab_backup.repository.untrusted_json import parse
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import NoSpaceError, ObjectInfo, ObjectNotFoundError

# A grace period must outlast what a writer may not have noticed (LOOK_AGAIN, twice), lists that lag and skewed clocks.
MIN_GRACE = timedelta(seconds=6 * LOOK_AGAIN)
# Between the moment until which a deletion can be undone and the removal: so that both never happen at once.
UNDO_MARGIN = timedelta(hours=1)
LIVE_LEASE = timedelta(seconds=3 * LOOK_AGAIN)  # a writer that has not renewed its lease for so long is gone
STALE_LEASE = timedelta(days=1)
REPACK_BELOW = 0.5  # a pack less than half of which is needed is worth copying
MERGE_ENTRIES = 100_000  # blobs in one index object: 4.5 MiB
MANY_INDEXES = 64  # small index objects are merged from so many on
MAX_REWRITE = timedelta(hours=1)  # a rewritten index older than this when it is ready is thrown away

GOOD, POOR, BAD = 0, 1, 2  # how much a place can be relied on: sound, condemned, damaged


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
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Survey:
    """What the mark phase found. Packs by id."""

    live: dict[bytes, int] = field(default_factory=dict)  # bytes in use
    tables: dict[bytes, tuple[str, int]] = field(default_factory=dict)  # index object that names it, size
    stored: dict[bytes, ObjectInfo] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)  # packs that an index object names, but that are not there
    orphans: list[IndexedPack] = field(default_factory=list)  # packs no index object names, but backups need
    missing: int = 0
    unreadable: set[bytes] = field(default_factory=set)  # packs that might hold what is missing


class Collector:
    """One collection run."""

    def __init__(
        self,
        repository: Repository,
        directory: Path,
        *,
        grace: timedelta | None = None,
        exclusive: bool = False,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Collect in `repository`; large sets are kept in a temporary folder below `directory`.

        `exclusive` is the caller's word that nobody else uses the repository: then any `grace` is allowed, also none, and what is garbage
        goes at once. Raises UsageError for a grace period that would be unsafe.
        """
        self._repository = repository
        self._directory = directory
        self._grace = repository.grace if grace is None else grace
        self._exclusive = exclusive
        self._step = step
        if self._grace < MIN_GRACE and not exclusive:
            raise UsageError(
                f"a grace period below {MIN_GRACE} could remove what a running backup is about to use",
                hint="add --exclusive if no backup is running on any host",
            )
        self._backups = Backups(repository)
        self._reader = Reader(repository)
        self._now = datetime.min.replace(tzinfo=UTC)
        self._broken_indexes: set[str] = set()
        self.result = Result()

    def run(self, *, dry_run: bool = False) -> Result:
        """Collect. Safe to kill at any moment, and to run on several hosts at once.

        Raises BusyError where `exclusive` is not true, DamagedError where it cannot tell what backups refer to; then nothing was removed.
        """
        self._now = self._repository.clock()
        self._check_leases()
        self._step("reading the index")
        self._repository.synchronise()
        doomed = self._expired_backups()
        self.result.backups_removed = [backup.id for backup in doomed]
        if not dry_run:
            for backup in doomed:
                self._remove_backup(backup.id)
            self._remove_orphaned_marks()
        self._step("finding what is in use")
        survey = self._mark(ignore={backup.id for backup in doomed} if dry_run else set())
        self._decide(survey, dry_run=dry_run)
        if not dry_run:
            self._repository.restore_reserve()
            self._clean()
        return self.result

    # --- who else is here, and what is left over ---

    def _age(self, info: ObjectInfo) -> timedelta:
        return self._now - info.modified

    def _check_leases(self) -> None:
        if not self._exclusive:
            return
        for info in self._repository.storage.list(LEASES):
            if "clock-" not in info.path and self._age(info) < LIVE_LEASE:
                raise BusyError(
                    f"a backup is running, or was killed in the last {LIVE_LEASE}: {info.path.split('/')[1][:12]}",
                    hint="wait for it to end, or collect without --exclusive",
                )

    def _clean(self) -> None:
        storage = self._repository.storage
        storage.clean_temporary(max(self._grace, STALE_LEASE).total_seconds())
        for info in list(storage.list(LEASES)):
            if self._age(info) > STALE_LEASE:
                storage.delete(info.path)
        remove_leftovers(self._directory)

    # --- backups ---

    def _expired_backups(self) -> list[Backup]:
        margin = timedelta(0) if self._exclusive else UNDO_MARGIN
        return [backup for backup in self._backups.all() if self._is_expired(backup, margin)]

    def _is_expired(self, backup: Backup, margin: timedelta) -> bool:
        state = backup.state
        if state.deleted is None or state.protected or state.archived:
            return False
        return self._now - state.deleted >= self._grace + margin

    def _remove_backup(self, backup_id: str) -> None:
        state = marks.fold(self._backups.marks(backup_id))
        if state.deleted is not None and not state.protected and not state.archived:
            self._backups.remove(backup_id)

    def _remove_orphaned_marks(self) -> None:
        """Remove what a killed deletion left: marks of backups that are gone."""
        storage = self._repository.storage
        present = {info.path.removeprefix(f"{manifests.PREFIX}/") for info in storage.list(manifests.PREFIX)}
        for info in list(storage.list(marks.PREFIX)):
            if info.path.split("/")[1] not in present and self._age(info) >= self._grace:
                storage.delete(info.path)

    # --- mark ---

    def _mark(self, *, ignore: set[str]) -> _Survey:
        """Find what every backup refers to, and for each blob the one place that is to stay."""
        repository, survey = self._repository, _Survey()
        # The packs before the manifests: a pack that is written after this listing is not looked at.
        for info in repository.storage.list("packs"):
            pack_id = _pack_id(info.path)
            if pack_id is not None:
                survey.stored[pack_id] = info
        backups = self._backups.all()
        for path, error in self._backups.damaged.items():
            if path.startswith(manifests.PREFIX):
                raise DamagedError(
                    f"{path} cannot be read, so nobody can tell what it needs; nothing was removed ({error})",
                    hint="bring the object back from a copy, or give the backup up: lab-backup delete --now",
                )
        with LiveSet(self._directory) as live:
            walk = Walk(self._reader, seen=live.add)
            for backup in backups:
                if backup.id not in ignore:
                    for entry in (*backup.manifest.disks, *backup.manifest.files):
                        for _ in walk.survey(entry.tree, on_damage=self._unreadable):
                            pass
            self._place(live, survey)
        return survey

    def _unreadable(self, blob_id: bytes, _level: int, _offset: int, error: DamagedError) -> None:
        raise DamagedError(
            f"tree node {blob_id.hex()[:16]} cannot be read, so nobody can tell what is below it; nothing was removed ({error})",
            hint="run lab-backup verify, and delete the backups that it names with --now",
        ) from error

    def _place(self, live: LiveSet, survey: _Survey) -> None:
        condemned = self._repository.pack_list(Kind.CONDEMNED, CONDEMNED)
        removed = self._repository.pack_list(Kind.REMOVED, REMOVED)
        damage = self._repository.damage()
        bad = {(bytes.fromhex(pack), bytes.fromhex(blob)) for pack, blob in damage.blobs}

        def offer(pack: IndexedPack) -> None:
            pack_id = pack.info.id
            rank = BAD if pack_id in survey.gone else POOR if pack_id in condemned else GOOD
            for at in range(0, len(pack.table), ENTRY.size):
                blob_id = pack.table[at : at + ID]
                stored = int.from_bytes(pack.table[at + ID + 4 : at + ID + 8], "little")
                live.offer(blob_id, Place(BAD if bad and (pack_id, blob_id) in bad else rank, pack_id, stored))

        for pack in self._indexed(survey, removed):
            offer(pack)
        known = set(survey.tables) | removed
        orphans = [pack for pack in self._repository.rebuild(known=known) if pack.info.id in survey.stored]
        for pack in orphans:
            offer(pack)
        for _, place in live.places():
            if place is None:
                survey.missing += 1
            else:
                survey.live[place.pack] = survey.live.get(place.pack, 0) + place.stored
        survey.orphans = [pack for pack in orphans if self._broken_indexes or pack.info.id in survey.live]
        if survey.missing:
            survey.unreadable = set(survey.stored) - known - {pack.info.id for pack in orphans}

    def _indexed(self, survey: _Survey, removed: set[bytes]) -> Iterator[IndexedPack]:
        """Yield every pack that an index object names, and note which of them are not there."""
        for info in self._repository.storage.list(INDEX):
            for pack in self._read_index(info.path):
                if pack.info.id not in removed:
                    survey.tables[pack.info.id] = (info.path, pack.info.size)
                    # A pack is stored before it is indexed, so one that is not there now is gone, not late.
                    if pack.info.id not in survey.stored and not self._is_stored(pack.info.id):
                        survey.gone.add(pack.info.id)
                    yield pack

    def _is_stored(self, pack_id: bytes) -> bool:
        try:
            self._repository.storage.stat(pack_path(pack_id))
        except ObjectNotFoundError:
            return False
        return True

    def _read_index(self, path: str) -> list[IndexedPack]:
        try:
            return index.decode(self._repository.get_object(Kind.INDEX, path), path)
        except ObjectNotFoundError:
            return []
        except DamagedError:
            # Its packs are found as orphans, by their own tables, and indexed anew.
            self._broken_indexes.add(path)
            return []

    # --- sweep ---

    def _decide(self, survey: _Survey, *, dry_run: bool) -> None:
        result, storage = self.result, self._repository.storage
        result.missing_chunks = survey.missing
        result.bytes_live = sum(survey.live.values())
        if survey.missing:
            result.notes.append(f"{survey.missing} chunks that backups need are missing: run lab-backup verify")
        removable: set[bytes] = set()
        spared: set[bytes] = set()
        finished = []
        condemned: set[bytes] = set()
        for info in list(storage.list(CONDEMNED)):
            packs = self._list(Kind.CONDEMNED, info.path)
            if self._exclusive or self._age(info) >= self._grace:
                finished.append(info.path)
                removable |= {pack for pack in packs if pack not in survey.live}
                spared |= {pack for pack in packs if pack in survey.live}
            else:
                condemned |= packs
        unused = {
            pack_id
            for pack_id, info in survey.stored.items()
            if pack_id not in survey.live
            and pack_id not in condemned | removable | survey.unreadable
            and (self._exclusive or self._age(info) >= self._grace)
        }
        # An index entry without a pack helps nobody; without this it could mislead a writer.
        removable |= {pack for pack in survey.gone if pack not in survey.live and pack not in condemned}
        if self._exclusive:
            removable, unused = removable | unused, set()
        sparse = self._sparse(survey, condemned | removable | spared)
        result.packs_spared = len(spared)
        result.packs_removed, result.bytes_removed = len(removable), _size(removable, survey)
        result.packs_condemned, result.bytes_condemned = (
            len(unused) + len(sparse),
            _size(unused, survey) + _size(sparse, survey),
        )
        result.packs_repacked = len(sparse)
        if dry_run:
            return
        self._publish_index(survey.orphans)
        for path in self._broken_indexes:
            storage.delete(path)
        self._step("removing")
        self._remove(removable)
        for path in finished:
            storage.delete(path)
        self._condemn(unused)
        self._step("repacking")
        self._repack(sparse)
        self._step("tidying the index")
        self._rewrite_index()

    def _list(self, kind: Kind, path: str) -> set[bytes]:
        try:
            payload = self._repository.get_object(kind, path)
            return parse(payload, PackList, path).ids
        except ObjectNotFoundError:
            return set()

    def _sparse(self, survey: _Survey, leave: set[bytes]) -> set[bytes]:
        """Return the packs that are mostly garbage and old enough to be copied and given up."""
        return {
            pack_id
            for pack_id, used in survey.live.items()
            if pack_id in survey.stored
            and pack_id in survey.tables
            and pack_id not in leave
            and used < REPACK_BELOW * survey.stored[pack_id].size
            and (self._exclusive or self._age(survey.stored[pack_id]) >= self._grace)
        }

    def _publish(self, kind: Kind, prefix: str, packs: set[bytes]) -> None:
        payload = msgspec.json.encode(PackList(packs=sorted(pack.hex() for pack in packs)))
        path = f"{prefix}/{secrets.token_hex(16)}"
        self._repository.storage_full_safe(lambda: self._repository.put_object(kind, path, payload))

    def _remove(self, packs: set[bytes]) -> None:
        """Take packs out of everybody's index, then delete them. In this order: an index entry must never lead nowhere."""
        if packs:
            self._publish(Kind.REMOVED, REMOVED, packs)
            for pack_id in sorted(packs):
                self._repository.storage.delete(pack_path(pack_id))

    def _condemn(self, packs: set[bytes]) -> None:
        if packs:
            self._publish(Kind.CONDEMNED, CONDEMNED, packs)

    def _repack(self, sparse: set[bytes]) -> None:
        """Copy what is needed out of sparse packs; then condemn them, or with `exclusive` remove them."""
        if not sparse:
            return
        repository = self._repository
        repository.synchronise()
        try:
            with Packer(repository) as packer:
                for pack_id in sorted(sparse):
                    number = repository.cache.pack_number(pack_id)
                    if number is not None:
                        self._copy(number, packer)
                packer.flush()
        except NoSpaceError:
            self.result.notes.append("there was no room to repack; run gc again when there is")
            self.result.packs_condemned -= len(sparse)
            self.result.packs_repacked = 0
            return
        except DamagedError as error:
            self.result.notes.append(f"sparse packs were left as they are: {error}")
            self.result.packs_repacked = 0
            return
        if self._exclusive:
            self._remove(sparse)
        else:
            self._condemn(sparse)

    def _copy(self, number: int, packer: Packer) -> None:
        """Store again every blob that the index finds in this pack and nowhere better."""
        repository = self._repository
        info = repository.cache.pack(number)
        here = []
        for entry in self._reader.pack_table(info):
            place = repository.cache.locate(entry.id)
            if place is not None and place.pack == number:
                here.append(Location(number, entry))
        for entry, data in self._reader.read_blobs(here, info.kind):
            if packer.claim(entry.id):
                packer.store(info.kind, entry.id, data)

    # --- the index ---

    def _publish_index(self, packs: list[IndexedPack]) -> None:
        batch: list[IndexedPack] = []
        entries = 0
        for pack in packs:
            batch.append(pack)
            entries += len(pack.table) // ENTRY.size
            if entries >= MERGE_ENTRIES:
                self._put_index(batch)
                batch, entries = [], 0
        self._put_index(batch)

    def _put_index(self, packs: list[IndexedPack]) -> None:
        if packs:
            path, payload = f"{INDEX}/{secrets.token_hex(16)}", index.encode(packs)
            self._repository.storage_full_safe(lambda: self._repository.put_object(Kind.INDEX, path, payload))

    def _rewrite_index(self) -> None:
        """Write index objects anew that name removed packs, or are many and small; then drop lists that nobody needs any more."""
        repository, storage = self._repository, self._repository.storage
        began = time.monotonic()
        removed = repository.pack_list(Kind.REMOVED, REMOVED)
        infos = list(storage.list(INDEX))
        contents = {info.path: self._read_index(info.path) for info in infos}
        stale = {path for path, packs in contents.items() if any(pack.info.id in removed for pack in packs)}
        small = {info.path for info in infos if info.size < 1024 * 1024 and contents[info.path]}
        if len(small) > MANY_INDEXES:
            stale |= small
        kept = {pack.info.id: pack for path in stale for pack in contents[path] if pack.info.id not in removed}
        if stale:
            self._publish_index(list(kept.values()))
            if time.monotonic() - began > MAX_REWRITE.total_seconds():
                return
            for path in stale:
                storage.delete(path)
        named = {pack.info.id for path, packs in contents.items() if path not in stale for pack in packs}
        for info in list(storage.list(REMOVED)):
            if (self._exclusive or self._age(info) >= self._grace) and not self._list(Kind.REMOVED, info.path) & named:
                storage.delete(info.path)
        self._forget_damage(removed)

    def _forget_damage(self, removed: set[bytes]) -> None:
        """Drop records of damage that speak only of packs that are gone for good."""
        gone = {pack.hex() for pack in removed}
        for info in list(self._repository.storage.list(DAMAGED)):
            try:
                record = parse(self._repository.get_object(Kind.DAMAGED, info.path), DamageList, info.path)
            except (DamagedError, ObjectNotFoundError):
                continue
            if all(pack in gone for pack in record.packs) and all(pack in gone for pack, _ in record.blobs):
                self._repository.storage.delete(info.path)


def _pack_id(path: str) -> bytes | None:
    try:
        pack_id = bytes.fromhex(path.rsplit("/", 1)[1])
    except ValueError:
        return None
    return pack_id if len(pack_id) == PACK_ID and pack_path(pack_id) == path else None


def _size(packs: set[bytes], survey: _Survey) -> int:
    return sum(survey.stored[pack].size for pack in packs if pack in survey.stored)
