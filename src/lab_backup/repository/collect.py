"""Garbage collection beside running writers, readers and other collectors, on any number of hosts.

Nothing is removed at once. A pack that no backup refers to is *condemned*: a dated list says so. After the grace period all manifests are read again, and what is
still unreferred to is *removed*: first a list that takes it out of everybody's index, then the pack. Ages are the storage's, never ours.
Why no race loses data is in `docs/format/concurrency.md`, step by step.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
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
from lab_backup.repository.errors import DamagedError, NewerVersionError
from lab_backup.repository.immutability import Locks, head_objects, promised
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
from lab_backup.repository.untrusted_json import Moment, parse
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import NoSpaceError, ObjectInfo, ObjectLockedError, ObjectNotFoundError
from lab_backup.units import MiB

# A grace period must outlast what a writer may not have noticed (LOOK_AGAIN, twice), lists that lag and skewed clocks.
MIN_GRACE = timedelta(seconds=6 * LOOK_AGAIN)
# Between the moment until which a deletion can be undone and the removal: so that both never happen at once.
UNDO_MARGIN = timedelta(hours=1)
LIVE_LEASE = timedelta(seconds=3 * LOOK_AGAIN)  # a writer that has not renewed its lease for so long is gone
STALE_LEASE = timedelta(days=1)
REPACK_BELOW = 0.5  # a pack less than half of which is needed is worth copying
MERGE_ENTRIES = 100_000  # blobs in one index object: 4.5 MiB
MANY_INDEXES = 64  # small index objects are merged from so many on
SMALL_INDEX = 1 * MiB
MAX_REWRITE = timedelta(hours=1)  # where the collection took longer, what the new index names is looked at once more
SETTLED = timedelta(hours=1)  # no list lags so far behind: what is that old is seen by everybody
# How long a list of removed packs stays at least, should somebody sleep who is about to publish an index that names them.
KEEP_REMOVED = timedelta(days=7)

GOOD, POOR, BAD = 0, 1, 2  # how much a place can be relied on: sound, condemned, damaged


class Lease(msgspec.Struct, frozen=True):
    """What matters of a lease: when the backup began, by the storage's clock, if it says so."""

    began: Moment | None = None


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


@dataclass(slots=True)
class _Survey:
    """What the mark phase found. Packs by id."""

    live: dict[bytes, int] = field(default_factory=dict)  # bytes in use
    tables: dict[bytes, int] = field(
        default_factory=dict
    )  # packs that index objects name, and the bytes of all their blobs
    stored: dict[bytes, ObjectInfo] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)  # packs that an index object names, but that are not there
    orphans: list[IndexedPack] = field(default_factory=list)  # packs no index object names, but backups need
    missing: int = 0
    unreadable: set[bytes] = field(default_factory=set)  # packs that might hold what is missing
    removed: set[bytes] = field(default_factory=set)  # packs that a list takes out of everybody's index
    backups: list[str] = field(default_factory=list)  # ids of those that are not deleted
    kept: set[bytes] = field(default_factory=set)  # packs that these need; only where locks are to be prolonged


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
        self._locked: set[str] = set()
        self._period = timedelta()
        self.result = Result()

    def run(self, *, dry_run: bool = False) -> Result:
        """Collect. Safe to kill at any moment, and to run on several hosts at once.

        Raises BusyError where `exclusive` is not true, DamagedError where it cannot tell what backups refer to; then nothing was removed.
        """
        self._now = self._repository.clock()
        self._check_leases()
        running_since = self._running_since()  # before the manifests: who has no lease any more has published
        self._step("reading the index")
        self._repository.synchronise()
        self._period = promised(self._repository)
        doomed = [backup for backup in self._expired_backups() if not self._is_locked(manifests.path(backup.id))]
        self.result.backups_removed = [backup.id for backup in doomed]
        if not dry_run:
            mended = self._repository.mend_config()
            self.result.notes.extend(f"{path} was missing or damaged and is written again" for path in mended)
            for backup in doomed:
                self._remove_backup(backup.id)
            self._remove_orphaned_marks()
        self._step("finding what is in use")
        with LiveSet(self._directory) as live:
            survey = self._mark(live, ignore={backup.id for backup in doomed} if dry_run else set())
            if not dry_run:
                self._prolong(survey)
            self._decide(survey, live, running_since, dry_run=dry_run)
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

    def _running_since(self) -> datetime | None:
        """Return when the oldest backup that is running began, None if there is none."""
        began = []
        for info in self._repository.storage.list(LEASES):
            if "clock-" not in info.path and self._age(info) < LIVE_LEASE:
                try:
                    lease = parse(self._repository.get_object(Kind.LEASE, info.path), Lease, info.path)
                except (ObjectNotFoundError, DamagedError):
                    continue
                began.append(lease.began or info.modified)
        return min(began, default=None)

    # --- what is locked ---

    def _is_locked(self, path: str) -> bool:
        """Whether the object cannot go yet; then it is counted among those that will have to."""
        storage = self._repository.storage
        if not storage.locks:
            return False
        try:
            until = storage.locked_until(path)
        except ObjectNotFoundError:
            return False
        if until is not None:
            self._count_locked(path, until)
        return until is not None

    def _count_locked(self, path: str, until: datetime) -> None:
        result = self.result
        if path not in self._locked:
            self._locked.add(path)
            result.objects_locked += 1
            result.bytes_locked += self._repository.storage.stat(path).size
        result.locked_until = max(until, result.locked_until or until)

    def _delete(self, path: str) -> None:
        """Delete an object, or leave it to a later collection where it is locked."""
        try:
            self._repository.storage.delete(path)
        except ObjectLockedError as error:
            self._count_locked(path, error.until)

    def _prolong(self, survey: _Survey) -> None:
        """Let everything be locked for long enough that backups need which are not deleted."""
        locks = Locks(self._repository, self._period)
        if not self._period:
            return
        storage = self._repository.storage
        self._step("prolonging locks")
        indexes = [info.path for info in storage.list(INDEX)]
        lists = [info.path for prefix in (CONDEMNED, REMOVED) for info in storage.list(prefix)]
        kept = [
            *(pack_path(pack_id) for pack_id in sorted(survey.kept) if pack_id in survey.stored),
            *indexes,
            *lists,
            *(manifests.path(backup_id) for backup_id in survey.backups),
            *head_objects(self._repository),
        ]
        self.result.objects_prolonged = locks.extend(kept, now=self._now)
        locks.forget(kept)

    def _clean(self) -> None:
        storage = self._repository.storage
        leftover = self._grace if self._exclusive else max(self._grace, STALE_LEASE)
        storage.clean_temporary(leftover.total_seconds())
        for info in list(storage.list(LEASES)):
            if self._age(info) > STALE_LEASE:
                storage.delete(info.path)
        remove_leftovers(self._directory)

    # --- backups ---

    def _expired_backups(self) -> list[Backup]:
        # A shorter grace period frees packs sooner; a deletion can be taken back for as long as the repository promises.
        wait = self._grace if self._exclusive else max(self._grace, self._repository.grace) + UNDO_MARGIN
        expired = [backup for backup in self._backups.all() if self._is_expired(backup, wait)]
        # A mark that cannot be read may be the one that protects.
        unclear = {path.split("/")[1] for path in self._backups.damaged if path.startswith(f"{marks.PREFIX}/")}
        kept = [backup.id for backup in expired if backup.id in unclear]
        if kept:
            self.result.notes.append(f"{len(kept)} deleted backups with damaged marks were kept: {', '.join(kept)}")
        return [backup for backup in expired if backup.id not in unclear]

    def _is_expired(self, backup: Backup, wait: timedelta) -> bool:
        state = backup.state
        if state.deleted is None or state.protected or state.archived:
            return False
        return self._now - state.deleted >= wait

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

    def _mark(self, live: LiveSet, *, ignore: set[str]) -> _Survey:
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
                if isinstance(error, NewerVersionError):
                    raise error
                raise DamagedError(
                    f"{path} cannot be read, so nobody can tell what it needs; nothing was removed ({error})",
                    hint="bring the object back from a copy, or give the backup up: lab-backup delete --now",
                )
        walk = Walk(self._reader, seen=live.add)
        for backup in backups:
            if backup.id not in ignore:
                self._walk(walk, backup)
        survey.backups = [backup.id for backup in backups if backup.state.deleted is None]
        self._place(live, survey)
        if self._period:
            survey.kept = self._needed_by(live, survey, backups)
        return survey

    def _walk(self, walk: Walk, backup: Backup) -> None:
        for chunk_list in backup.manifest.lists:
            for _ in walk.survey(chunk_list, on_damage=self._unreadable):
                pass

    def _needed_by(self, live: LiveSet, survey: _Survey, backups: list[Backup]) -> set[bytes]:
        """Return the packs that backups need which are not deleted: locks of the others are to run out."""
        if len(survey.backups) == len(backups):
            return set(survey.live)
        with LiveSet(self._directory) as needed:
            walk = Walk(self._reader, seen=needed.add)
            for backup in backups:
                if backup.state.deleted is None:
                    self._walk(walk, backup)
            return {place.pack for blob_id, _ in needed.places() if (place := live.place(blob_id)) is not None}

    def _unreadable(self, blob_id: bytes, _level: int, _offset: int, error: DamagedError) -> None:
        raise DamagedError(
            f"tree node {blob_id.hex()[:16]} cannot be read, so nobody can tell what is below it; nothing was removed ({error})",
            hint="run lab-backup verify, and delete the backups that it names with --now",
        ) from error

    def _place(self, live: LiveSet, survey: _Survey) -> None:
        condemned = self._repository.pack_list(Kind.CONDEMNED, CONDEMNED)
        removed = survey.removed = self._repository.pack_list(Kind.REMOVED, REMOVED)
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
                    survey.tables[pack.info.id] = sum(stored for _, _, stored, _, _ in ENTRY.iter_unpack(pack.table))
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

    def _decide(self, survey: _Survey, live: LiveSet, running_since: datetime | None, *, dry_run: bool) -> None:
        result, storage = self.result, self._repository.storage
        result.missing_chunks = survey.missing
        result.bytes_live = sum(survey.live.values())
        if survey.missing:
            result.notes.append(f"{survey.missing} chunks that backups need are missing: run lab-backup verify")
        lists = {info: self._list(Kind.CONDEMNED, info.path) for info in list(storage.list(CONDEMNED))}
        ripe: set[bytes] = set()
        for info, packs in lists.items():
            if self._exclusive or self._age(info) >= self._grace:
                ripe |= packs
        condemned = {pack for packs in lists.values() for pack in packs}
        spared = ripe & survey.live.keys()
        removable = {pack for pack in ripe - spared - survey.removed if not self._is_locked(pack_path(pack))}
        unused = {
            pack_id
            for pack_id, info in survey.stored.items()
            if pack_id not in survey.live
            and pack_id not in condemned | survey.removed | survey.unreadable
            and (self._exclusive or self._age(info) >= self._grace)
            and (running_since is None or info.modified < running_since - SETTLED)
        }
        # An index entry without a pack helps nobody; without this it could mislead a writer.
        removable |= {pack for pack in survey.gone if pack not in survey.live and pack not in condemned}
        if self._exclusive:
            locked = {pack for pack in unused if self._is_locked(pack_path(pack))}
            removable, unused = removable | (unused - locked), locked
        sparse = self._sparse(survey, condemned | removable)
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
        for path in sorted(self._broken_indexes):
            self._delete(path)
        self._step("removing")
        self._remove(removable)
        self._delete_packs(survey.removed & survey.stored.keys())  # what a killed collector left
        self._condemn(unused)
        self._drop_unreadable()
        self._step("repacking")
        self._repack(sparse, spared, live)
        self._step("tidying the index")
        self._rewrite_index(survey)
        self._drop_condemned(lists, survey)

    def _drop_condemned(self, lists: dict[ObjectInfo, set[bytes]], survey: _Survey) -> None:
        """Delete the lists all of whose packs were removed, once everybody sees that: what is condemned is never usable again."""
        gone = set(survey.removed)
        for info in self._repository.storage.list(REMOVED):
            if not self._exclusive and self._age(info) < SETTLED:
                gone -= self._list(Kind.REMOVED, info.path)
            elif self._exclusive:
                gone |= self._list(Kind.REMOVED, info.path)
        for info, packs in lists.items():
            if all(pack in gone or (pack not in survey.stored and pack not in survey.tables) for pack in packs):
                self._delete(info.path)

    def _drop_unreadable(self) -> None:
        """Delete damaged lists of condemned packs, without which backups cannot run, and damaged records of damage.

        What they named is condemned by a list of ours if it is garbage, and is found again by a verification if it is damaged.
        """
        for path in sorted(self._repository.unreadable):
            if not path.startswith(f"{REMOVED}/"):
                self._delete(path)
                self.result.notes.append(f"{path} was damaged and is dropped")

    def _list(self, kind: Kind, path: str) -> set[bytes]:
        try:
            payload = self._repository.get_object(kind, path)
            return parse(payload, PackList, path).ids
        except (ObjectNotFoundError, DamagedError):
            return set()

    def _sparse(self, survey: _Survey, leave: set[bytes]) -> set[bytes]:
        """Return the packs that are mostly garbage and old enough to be copied and given up."""
        return {
            pack_id
            for pack_id, used in survey.live.items()
            if pack_id in survey.stored
            and pack_id in survey.tables
            and pack_id not in leave
            and used < REPACK_BELOW * survey.tables[pack_id]  # not of its size: header and table always count
            and (self._exclusive or self._age(survey.stored[pack_id]) >= self._grace)
        }

    def _publish(self, kind: Kind, prefix: str, packs: set[bytes]) -> None:
        payload = msgspec.json.encode(PackList(packs=sorted(pack.hex() for pack in packs), surveyed=self._now))
        path = f"{prefix}/{secrets.token_hex(16)}"
        self._repository.storage_full_safe(lambda: self._repository.put_object(kind, path, payload))

    def _remove(self, packs: set[bytes]) -> None:
        """Take packs out of everybody's index, then delete them. In this order: an index entry must never lead nowhere."""
        if packs:
            self._publish(Kind.REMOVED, REMOVED, packs)
            self._delete_packs(packs)

    def _delete_packs(self, packs: set[bytes]) -> None:
        for pack_id in sorted(packs):
            self._delete(pack_path(pack_id))

    def _condemn(self, packs: set[bytes]) -> None:
        if packs:
            self._publish(Kind.CONDEMNED, CONDEMNED, packs)

    def _repack(self, sparse: set[bytes], spared: set[bytes], live: LiveSet) -> None:
        """Copy what is needed out of sparse packs, and out of those that were condemned before a backup turned out to need them.

        Then condemn them (the spared ones are), or with `exclusive` remove them.
        """
        copied: set[bytes] = set()
        if sparse or spared:
            self._repository.synchronise()
            try:
                with Packer(self._repository) as packer:
                    for pack_id in sorted(sparse | spared):
                        try:
                            self._copy(pack_id, live, packer)
                            copied.add(pack_id)
                        except (DamagedError, ObjectNotFoundError) as error:
                            self.result.notes.append(f"pack {pack_id.hex()} was left as it is: {error}")
                    packer.flush()
            except NoSpaceError:
                self.result.notes.append("there was no room to repack; run gc again when there is")
                copied = set()
        left = len(sparse - copied)
        self.result.packs_condemned -= left
        self.result.packs_repacked -= left
        if self._exclusive:
            locked = {pack_id for pack_id in copied if self._is_locked(pack_path(pack_id))}
            self._remove(copied - locked)
            self._condemn(locked - spared)
        else:
            self._condemn(copied - spared)

    def _copy(self, pack_id: bytes, live: LiveSet, packer: Packer) -> None:
        """Store again every blob that is in use and has its place in this pack."""
        cache = self._repository.cache
        number = cache.pack_number(pack_id)
        if number is None:
            raise DamagedError("the index does not name it any more")
        info = cache.pack(number)
        here = []
        for entry in self._reader.pack_table(info):
            place = live.place(entry.id)
            if place is not None and place.pack == pack_id:
                here.append(Location(number, entry))
        for blob in self._reader.read_blobs(here, info.kind):
            if packer.claim(blob.entry.id):
                packer.store_packed(info.kind, blob.entry, blob.packed)

    # --- the index ---

    def _publish_index(self, packs: Iterable[IndexedPack]) -> None:
        """Store index objects that name these packs."""
        batch: list[IndexedPack] = []
        entries = 0
        for pack in packs:
            batch.append(pack)
            entries += len(pack.table) // ENTRY.size
            if entries >= MERGE_ENTRIES:
                self._put_index(batch)
                batch, entries = [], 0
        if batch:
            self._put_index(batch)

    def _put_index(self, packs: list[IndexedPack]) -> None:
        path, payload = f"{INDEX}/{secrets.token_hex(16)}", index.encode(packs)
        self._repository.storage_full_safe(lambda: self._repository.put_object(Kind.INDEX, path, payload))

    def _rewrite_index(self, survey: _Survey) -> None:
        """Write anew what index objects say that name removed packs, or are many and small; then drop what nobody needs any more.

        An object goes only when newer ones name all its packs, and were there long enough for everybody to see them. So there is
        never a moment in which a pack is named by none, and of two collectors that see different things none undoes the other's work.
        """
        repository, storage = self._repository, self._repository.storage
        removed = repository.pack_list(Kind.REMOVED, REMOVED)
        objects = {
            info: {pack.info.id for pack in self._read_index(info.path)}
            for info in sorted(storage.list(INDEX), key=lambda info: (info.modified, info.path), reverse=True)
        }
        newer: set[bytes] = set()  # named by an object that is newer than the one at hand
        settled: set[bytes] = set()  # and seen by everybody
        needed: dict[ObjectInfo, set[bytes]] = {}
        superseded = []
        for info, packs in objects.items():
            wanted = packs - removed
            if not wanted <= newer:
                needed[info] = packs
            elif wanted <= settled or self._exclusive:
                superseded.append(info)
            newer |= wanted
            if self._age(info) >= SETTLED:
                settled |= wanted
        small = [info for info in needed if info.size < SMALL_INDEX]
        many = set(small) if len(small) > MANY_INDEXES else set()
        stale = [info for info, packs in needed.items() if info in many or packs & removed]
        self._merge(stale, {pack for info in stale for pack in needed[info]} - removed)
        for info in (*superseded, *(stale if self._exclusive else ())):
            self._delete(info.path)
            del objects[info]
        named = set().union(*objects.values())
        self._drop_removed(named)
        self._forget_damage(named | survey.stored.keys())

    def _merge(self, stale: list[ObjectInfo], packs: set[bytes]) -> None:
        """Store index objects that name `packs`, which the `stale` ones name."""
        if not packs:
            return
        named = set(packs)

        def wanted() -> Iterator[IndexedPack]:
            for info in stale:
                for pack in self._read_index(info.path):
                    if pack.info.id in packs:
                        packs.remove(pack.info.id)
                        yield pack

        self._publish_index(wanted())
        if self._repository.clock() - self._now > MAX_REWRITE:
            # Others may have removed some of these packs meanwhile, and even dropped the list that says so. Our objects must stay
            # all the same: somebody may have deleted others already because ours name the same packs.
            gone = {pack for pack in sorted(named) if not self._is_stored(pack)}
            if gone:
                self._publish(Kind.REMOVED, REMOVED, gone)

    def _drop_removed(self, named: set[bytes]) -> None:
        """Delete old lists of removed packs once no index object names any of them, and they are really gone."""
        keep = max(self._grace, KEEP_REMOVED)
        for info in list(self._repository.storage.list(REMOVED)):
            packs = self._list(Kind.REMOVED, info.path)
            old = self._exclusive or self._age(info) >= keep
            if old and not packs & named and not any(map(self._is_stored, sorted(packs))):
                self._delete(info.path)

    def _forget_damage(self, known: set[bytes]) -> None:
        """Drop records of damage that speak only of packs that are gone for good."""
        for info in list(self._repository.storage.list(DAMAGED)):
            try:
                record = parse(self._repository.get_object(Kind.DAMAGED, info.path), DamageList, info.path)
            except (DamagedError, ObjectNotFoundError):
                continue
            if not any(bytes.fromhex(pack) in known for pack in (*record.packs, *(pack for pack, _ in record.blobs))):
                self._delete(info.path)


def _pack_id(path: str) -> bytes | None:
    try:
        pack_id = bytes.fromhex(path.rsplit("/", 1)[1])
    except ValueError:
        return None
    return pack_id if len(pack_id) == PACK_ID and pack_path(pack_id) == path else None


def _size(packs: set[bytes], survey: _Survey) -> int:
    return sum(survey.stored[pack].size for pack in packs if pack in survey.stored)
