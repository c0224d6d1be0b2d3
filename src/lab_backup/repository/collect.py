"""Garbage collection beside running writers, readers and other collectors, on any number of hosts.

Nothing is removed at once. A pack that no backup refers to is *condemned*: a dated list says so. After the grace period all manifests are read again, and what is
still unreferred to is *removed*: first a list that takes it out of everybody's index, then the pack. Ages are the storage's, never ours.
Why no race loses data is in `docs/format/concurrency.md`, step by step.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from lab_backup.errors import BusyError, LabBackupError, UsageError
from lab_backup.repository import manifest as manifests
from lab_backup.repository import marks
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.immutability import Locks, head_objects, last_readable, promised
from lab_backup.repository.index_merge import SETTLED, IndexMerger
from lab_backup.repository.live_set import LiveSet, remove_leftovers
from lab_backup.repository.marks import State
from lab_backup.repository.pack import PACKS, pack_path
from lab_backup.repository.repack import Repacker
from lab_backup.repository.repository import CONDEMNED, INDEX, LEASES, REMOVED, PackList, Repository
from lab_backup.repository.session import LOOK_AGAIN
from lab_backup.repository.survey import Survey, Surveyor
from lab_backup.repository.sweep import Result, Sweeper
from lab_backup.repository.untrusted_json import Moment, parse
from lab_backup.storage.base import ObjectInfo, ObjectLockedError, ObjectNotFoundError

# A grace period must outlast what a writer may not have noticed (LOOK_AGAIN, twice), lists that lag and skewed clocks.
MIN_GRACE = timedelta(seconds=6 * LOOK_AGAIN)
# Between the moment until which a deletion can be undone and the removal: so that both never happen at once.
UNDO_MARGIN = timedelta(hours=1)
LIVE_LEASE = timedelta(seconds=3 * LOOK_AGAIN)  # a writer that has not renewed its lease for so long is gone
STALE_LEASE = timedelta(days=1)
TOLD = 3  # objects that cannot be removed, by their names


class Lease(msgspec.Struct, frozen=True):
    """What matters of a lease: when the backup began, by the storage's clock, if it says so."""

    began: Moment | None = None


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
        self._step = step
        if self._grace < MIN_GRACE and not exclusive:
            raise UsageError(
                f"a grace period below {MIN_GRACE} could remove what a running backup is about to use",
                hint="add --exclusive if no backup is running on any host",
            )
        self._backups = Backups(repository)
        self._sweeper = Sweeper(repository, exclusive=exclusive)
        self._surveyor = Surveyor(repository, self._backups, directory)
        self._repacker = Repacker(repository, self._sweeper, grace=self._grace)
        self._merger = IndexMerger(repository, self._surveyor, self._sweeper, grace=self._grace)
        self._locks = Locks(repository, timedelta())
        self._prolonged = False
        self.result = self._sweeper.result

    def run(self, *, dry_run: bool = False) -> Result:
        """Collect. Safe to kill at any moment, and to run on several hosts at once.

        Raises BusyError where `exclusive` is not true, DamagedError where it cannot tell what backups refer to; then nothing was removed.
        """
        self._sweeper.now = self._repository.clock()
        self._check_leases()
        try:
            self._collect(dry_run=dry_run)
        except LabBackupError:
            # Otherwise whoever spoils one object would have to wait only until all locks have run out.
            if not dry_run and not self._prolonged:
                with suppress(LabBackupError):
                    self._hold_on(last_readable(self._repository))
            raise
        return self.result

    def _collect(self, *, dry_run: bool) -> None:
        running_since = self._running_since()  # before the manifests: who has no lease any more has published
        self._step("reading the index")
        self._repository.synchronise()
        period = promised(self._repository)
        self._locks = Locks(self._repository, period)
        expired = self._expired_backups()
        doomed = [backup for backup in expired if not self._sweeper.is_locked(manifests.path(backup.id))]
        spent = {backup.id for backup in expired} - {backup.id for backup in doomed}
        spent |= {
            backup_id for backup_id, state in self._backups.given_up.items() if self._is_over(state)
        } - self._unclear()
        self.result.backups_removed = [backup.id for backup in doomed]
        if not dry_run:
            mended = self._repository.mend_config()
            self.result.notes.extend(f"{path} was missing or damaged and is written again" for path in mended)
            self.result.backups_removed = [backup.id for backup in doomed if self._remove_backup(backup.id)]
            self._remove_orphaned_marks()
        self._step("finding what is in use")
        with LiveSet(self._directory) as live:
            ignore = {backup.id for backup in doomed} if dry_run else set()
            survey = self._surveyor.survey(live, ignore=ignore, spent=spent, locking=bool(period))
            kept = self._prolong(survey) if period and not dry_run else []
            self._decide(survey, live, running_since, dry_run=dry_run)
        if not dry_run:
            if period:
                self._prolong_lists(kept)
            self._repository.restore_reserve()
            self._clean()
            self._tell_refused()

    def _tell_refused(self) -> None:
        """Say what could not be removed."""
        refused = sorted(self._sweeper.refused.items())
        self.result.notes.extend(f"{path} cannot be removed: {error}" for path, error in refused[:TOLD])
        if len(refused) > TOLD:
            self.result.notes.append(
                f"so it is with {len(refused) - TOLD} others: does the key have the right to delete?"
            )

    # --- who else is here, and what is left over ---

    def _check_leases(self) -> None:
        if not self._sweeper.exclusive:
            return
        for info in self._repository.storage.list(LEASES):
            if "clock-" not in info.path and self._sweeper.age(info) < LIVE_LEASE:
                raise BusyError(
                    f"a backup is running, or was killed in the last {LIVE_LEASE}: {info.path.split('/')[1][:12]}",
                    hint="wait for it to end, or collect without --exclusive",
                )

    def _running_since(self) -> datetime | None:
        """Return when the oldest backup that is running began, None if there is none."""
        began = []
        for info in self._repository.storage.list(LEASES):
            if "clock-" not in info.path and self._sweeper.age(info) < LIVE_LEASE:
                try:
                    lease = parse(self._repository.get_object(Kind.LEASE, info.path), Lease, info.path)
                except (ObjectNotFoundError, DamagedError):
                    continue
                began.append(lease.began or info.modified)
        return min(began, default=None)

    # --- what is to be locked ---

    def _prolong(self, survey: Survey) -> list[str]:
        """Let everything be locked for long enough that backups need which are not deleted, and what opens the repository; return what that is."""
        self._step("prolonging locks")
        packs = [pack_path(pack_id) for pack_id in sorted(survey.kept) if pack_id in survey.stored]
        backups = set(survey.backups)
        keeping = [path for path in self._backups.keeping if path.split("/")[1] in backups]
        head = head_objects(self._repository)
        kept = [*packs, *map(manifests.path, survey.backups), *keeping]
        if not self._locks.check(head, kept, self._lists(), now=self._sweeper.now):
            self.result.notes.append("objects that should have been locked were not: all locks are laid anew")
        self._extend([*kept, *head])
        return [*kept, *head]

    def _lists(self) -> list[str]:
        """Return what is needed to find a pack, or not to use it: index objects, and the lists that can be read."""
        storage = self._repository.storage
        found = [info.path for prefix in (INDEX, CONDEMNED, REMOVED) for info in storage.list(prefix)]
        return [path for path in found if path not in self._repository.unreadable]

    def _prolong_lists(self, kept: list[str]) -> None:
        """Prolong the locks of index objects and lists, but not of those that would be gone already if they were not locked."""
        lists = [path for path in self._lists() if path not in self._sweeper.locked]
        self._extend(lists)
        self._locks.forget([*kept, *lists, *self._sweeper.written])
        self._prolonged = True

    def _extend(self, paths: list[str]) -> None:
        self.result.objects_prolonged += self._locks.extend(paths, now=self._sweeper.now, removable=True)
        for path, error in self._locks.refused.items():
            self.result.notes.append(f"{path} cannot be locked: {error}")
        self._locks.refused.clear()

    def _hold_on(self, period: timedelta) -> None:
        """Where nobody can tell what is needed, let everything stay locked but backups that are marked as deleted."""
        if not period:
            return
        self._step("prolonging locks")
        self._locks = Locks(self._repository, period)
        there = [manifests.path(backup.id) for backup in self._backups.all() if backup.state.deleted is None]
        packs = [info.path for info in self._repository.storage.list(PACKS)]
        self._extend([*packs, *there, *self._backups.keeping, *head_objects(self._repository), *self._lists()])

    def _lock_written(self) -> None:
        """Lock what this collection wrote that backups rely on from now on, such as copies of what they need."""
        self._locks.extend(self._sweeper.written, now=self._sweeper.now)

    def _clean(self) -> None:
        storage = self._repository.storage
        leftover = self._grace if self._sweeper.exclusive else max(self._grace, STALE_LEASE)
        storage.clean_temporary(leftover.total_seconds())
        for info in list(storage.list(LEASES)):
            if self._sweeper.age(info) > STALE_LEASE:
                self._sweeper.delete(info.path)
        remove_leftovers(self._directory)

    # --- backups ---

    def _expired_backups(self) -> list[Backup]:
        expired = [backup for backup in self._backups.all() if self._is_over(backup.state)]
        unclear = self._unclear()
        kept = [backup.id for backup in expired if backup.id in unclear]
        if kept:
            self.result.notes.append(f"{len(kept)} deleted backups with damaged marks were kept: {', '.join(kept)}")
        return [backup for backup in expired if backup.id not in unclear]

    def _unclear(self) -> set[str]:
        """Return the backups with marks that cannot be read: one of them may be the one that protects."""
        return {path.split("/")[1] for path in self._backups.damaged if path.startswith(f"{marks.PREFIX}/")}

    def _is_over(self, state: State) -> bool:
        """Whether a deletion can be taken back no more."""
        # A shorter grace period frees packs sooner; a deletion can be taken back for as long as the repository promises.
        wait = self._grace if self._sweeper.exclusive else max(self._grace, self._repository.grace) + UNDO_MARGIN
        if state.deleted is None or state.protected or state.archived:
            return False
        return self._sweeper.now - state.deleted >= wait

    def _remove_backup(self, backup_id: str) -> bool:
        """Remove the backup, unless somebody has just taken its deletion back, or locked it."""
        state = marks.fold(self._backups.marks(backup_id))
        if state.deleted is None or state.protected or state.archived:
            return False
        try:
            self._backups.remove(backup_id)
        except ObjectLockedError as error:
            self._sweeper.count_locked(manifests.path(backup_id), error.until)
            return False
        return True

    def _remove_orphaned_marks(self) -> None:
        """Remove what a killed deletion left: marks of backups that are gone."""
        storage = self._repository.storage
        present = {info.path.removeprefix(f"{manifests.PREFIX}/") for info in storage.list(manifests.PREFIX)}
        for info in list(storage.list(marks.PREFIX)):
            if info.path.split("/")[1] not in present and self._sweeper.age(info) >= self._grace:
                self._sweeper.delete(info.path)

    # --- sweep ---

    def _decide(self, survey: Survey, live: LiveSet, running_since: datetime | None, *, dry_run: bool) -> None:
        result, storage = self.result, self._repository.storage
        result.missing_chunks = survey.missing
        result.bytes_live = sum(survey.live.values())
        if survey.missing:
            result.notes.append(f"{survey.missing} chunks that backups need are missing: run lab-backup verify")
        lists = {info: self._sweeper.read_list(Kind.CONDEMNED, info.path) for info in list(storage.list(CONDEMNED))}
        ripe: set[bytes] = set()
        for info, found in lists.items():
            if self._sweeper.exclusive or self._sweeper.age(info) >= self._grace:
                ripe |= found.ids
        condemned = {pack for found in lists.values() for pack in found.ids}
        spared = ripe & survey.live.keys()
        removable = {pack for pack in ripe - spared - survey.removed if not self._sweeper.is_locked(pack_path(pack))}
        unused = {
            pack_id
            for pack_id, info in survey.stored.items()
            if pack_id not in survey.live
            and pack_id not in condemned | survey.removed | survey.unreadable
            and (self._sweeper.exclusive or self._sweeper.age(info) >= self._grace)
            and (running_since is None or info.modified < running_since - SETTLED)
        }
        # An index entry without a pack helps nobody; without this it could mislead a writer.
        removable |= {pack for pack in survey.gone if pack not in survey.live and pack not in condemned}
        if self._sweeper.exclusive:
            locked = {pack for pack in unused if self._sweeper.is_locked(pack_path(pack))}
            removable, unused = removable | (unused - locked), locked
        sparse = self._repacker.sparse(survey, condemned | removable)
        result.packs_spared = len(spared)
        result.packs_removed, result.bytes_removed = len(removable), survey.size(removable)
        result.packs_condemned, result.bytes_condemned = (
            len(unused) + len(sparse),
            survey.size(unused) + survey.size(sparse),
        )
        result.packs_repacked = len(sparse)
        if dry_run:
            return
        self._merger.publish(survey.orphans)
        for path in sorted(self._surveyor.broken_indexes):
            self._sweeper.delete(path)
        self._step("removing")
        self._sweeper.remove(removable)
        self._sweeper.delete_packs(survey.removed & survey.stored.keys())  # what a killed collector left
        self._sweeper.condemn(unused)
        self._drop_unreadable()
        self._step("repacking")
        self._repacker.repack(sparse, spared, live)
        self._lock_written()
        self._step("tidying the index")
        self._merger.rewrite(set(survey.stored))
        self._lock_written()
        self._drop_condemned(lists, survey)

    def _drop_condemned(self, lists: dict[ObjectInfo, PackList], survey: Survey) -> None:
        """Delete the lists all of whose packs were removed, once everybody sees that: what is condemned is never usable again."""
        gone = set(survey.removed)
        for info in self._repository.storage.list(REMOVED):
            if not self._sweeper.exclusive and self._sweeper.age(info) < SETTLED:
                gone -= self._sweeper.read_list(Kind.REMOVED, info.path).ids
            elif self._sweeper.exclusive:
                gone |= self._sweeper.read_list(Kind.REMOVED, info.path).ids
        for info, found in lists.items():
            spent = all(pack in gone or (pack not in survey.stored and pack not in survey.tables) for pack in found.ids)
            if spent and not self._sweeper.locked & set(found.instead_of):
                self._sweeper.delete(info.path)

    def _drop_unreadable(self) -> None:
        """Delete damaged lists of condemned packs, without which backups cannot run, and damaged records of damage.

        What they named is condemned by a list of ours if it is garbage, and is found again by a verification if it is damaged.
        So where one of the former is locked, a list of ours says that it stands in for it.
        """
        stays = set()
        for path in sorted(self._repository.unreadable):
            if path.startswith(f"{REMOVED}/"):
                continue
            if self._sweeper.delete(path):
                self.result.notes.append(f"{path} was damaged and is dropped")
            else:
                self.result.notes.append(f"{path} is damaged, and goes when its lock ends")
                stays.add(path)
        orphaned = {path for path in stays - self._repository.replaced if path.startswith(f"{CONDEMNED}/")}
        if orphaned:
            self._sweeper.publish(Kind.CONDEMNED, CONDEMNED, set(), instead_of=orphaned)
