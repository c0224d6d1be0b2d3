"""Writers, deleters, collectors and verifiers at once, in random turns, on a storage whose clock jumps: nothing is ever lost.

A seed is a whole run, the random ids included: `LAB_BACKUP_SEED=17 pytest tests/fault/test_interleaving.py` plays one again (with the same
PYTHONHASHSEED). In *calm* runs nobody pauses for longer than `docs/format/concurrency.md` allows, and then nobody may fail either.
"""

import os
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from lab_backup.errors import LabBackupError, NotFoundError, UsageError
from lab_backup.extent import Extent
from lab_backup.operations.backup import run_backup
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect, undelete, unprotect
from lab_backup.operations.verify import verify
from lab_backup.repository import index_merge, reader
from lab_backup.repository.backups import Backups
from lab_backup.repository.errors import DamagedError, LostRaceError, ProtectedError
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession
from lab_backup.storage.base import StorageBackend
from support.engine import CHUNK, MemoryDisk, MemoryExport, MemorySource, back_up, restored
from support.oracle import Oracle
from support.stage import Actor, Stage, blocks, collector, single_threaded

RUNS = int(os.environ.get("LAB_BACKUP_RUNS", "20"))  # a test; there are eight
ACTS = 16  # operations in a run
MOST_AT_ONCE = 5
# The moments between a look and what is done because of it.
BRINKS = (
    "create manifests/", "upload index/", "upload packs/", "upload removed/", "upload condemned/", "upload marks/", "delete ", "list ",
)  # fmt: skip
SOURCES = ("one", "two", "wide")


class Run:
    """One run: `play` lets a few actors at a time do ACTS operations in all, in random turns."""

    def __init__(self, seed: int, directory: Path, *, calm: bool, lag: bool) -> None:
        """Prepare. With `lag`, lists show objects up to nine minutes late, and as they are at two moments."""
        self.random = Random(seed)
        self.calm = calm
        self.stage = Stage(directory)
        self.stage.lag = timedelta(minutes=9 if lag else 0)
        self.stage.torn_lists = lag
        self.contents: dict[str, bytes] = {}  # by backup, as soon as its writer begins
        self.kept: set[str] = set()  # published, and nobody has asked for its deletion
        self.going: set[str] = set()  # and for good, which nobody can take back
        self.writers: set[str] = set()
        self.asleep: dict[str, float] = {}  # actors by name, and until when
        self.sleepers: set[str] = set()  # actors who slept for so long that what they knew is no longer so
        self.standing: dict[str, float] = {}  # threads whose own clock stands still, and where
        self.now = {name: self._content(name) for name in SOURCES}
        self._leave_garbage()
        self.oracle = Oracle(self.stage)
        self.log: list[str] = []

    # --- what there is to do ---

    def _content(self, name: str) -> bytes:
        # Few different chunks: so there are duplicates, and what was garbage is often needed again.
        chunks = [bytes([self.random.randrange(24)]) * CHUNK for _ in range(9)]
        if name == "wide":
            return b"".join(chunk + bytes(CHUNK * 23) for chunk in chunks)
        return b"".join(chunks)

    def _leave_garbage(self) -> None:
        """Begin with old packs that nobody refers to, but that hold what will be needed again."""
        with self.stage.open() as repository:
            for first in range(0, 24, 4):
                made = back_up(repository, blocks(*range(first, first + 4)), name="garbage")
                delete(repository, made.backup, now=True)
        self.stage.pass_time(hours=30)

    def _changed(self, name: str) -> bytes:
        content = bytearray(self.now[name])
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(content) // CHUNK) * CHUNK
            content[at : at + CHUNK] = bytes([self.random.randrange(24)]) * CHUNK
        self.now[name] = bytes(content)
        return self.now[name]

    def _back_up(self) -> Callable[[Repository], None]:
        name = self.random.choice(SOURCES)
        content = self._changed(name)
        full = self.random.random() < 0.4
        backup_id = self.random.randbytes(16).hex()

        def work(repository: Repository) -> None:
            self.contents[backup_id] = content
            latest = None if full else Backups(repository).latest("vm", f"id-of-{name}")
            changes = None if latest is None else _differences(self.contents[latest.id], content)
            source = MemorySource([MemoryExport("vda", MemoryDisk(content), changes)], name=name)
            run_backup(repository, source, latest=latest, backup_id=backup_id)
            self.oracle.watch(backup_id, content)
            self.kept.add(backup_id)

        return work

    def _chosen(self, backups: set[str]) -> str | None:
        return self.random.choice(sorted(backups)) if backups else None

    def _delete(self) -> Callable[[Repository], None]:
        backup, now = self._chosen(self.kept), self.random.random() < 0.5

        def work(repository: Repository) -> None:
            if backup is not None:
                self.kept.discard(backup)
                if now:
                    self.going.add(backup)
                delete(repository, backup, now=now)

        return work

    def _undelete(self) -> Callable[[Repository], None]:
        backup = self._chosen(set(self.contents) - self.kept)

        def work(repository: Repository) -> None:
            if backup is not None:
                undelete(repository, backup)
                self.kept |= {backup} - self.going

        return work

    def _protect(self) -> Callable[[Repository], None]:
        backup = self._chosen(self.kept)
        on = self.random.random() < 0.7

        def work(repository: Repository) -> None:
            if backup is not None and on:
                protect(repository, backup)
            elif backup is not None:
                unprotect(repository, backup)

        return work

    def _collect(self) -> Callable[[Repository], None]:
        grace = self.random.choice((None, 3600, 3600))
        return lambda repository: _ignore(collect(repository, grace=grace))

    def _verify(self) -> Callable[[Repository], None]:
        def work(repository: Repository) -> None:
            fresh = self._fresh()
            result = verify(repository, read_data=True)
            touched = {touch.split("/")[0] for damage in result.damage for touch in damage.touches}
            # Of a backup that came late its writer has yet to find out what is wrong with it.
            if touched & self.oracle.watched - fresh:
                raise AssertionError(f"a false alarm: {result.damage}")

        return work

    def _fresh(self) -> set[str]:
        """Return the backups that lists need not show whole yet: their index objects may come later than their manifests."""
        stage = self.stage
        return {
            info.path.removeprefix("manifests/")
            for info in stage.storage.list("manifests")
            if stage.clock.now - info.modified < stage.lag
        }

    def _restore(self) -> Callable[[Repository], None]:
        backup = self._chosen(self.kept)

        def work(repository: Repository) -> None:
            if backup is not None:
                fresh = self._fresh()
                try:
                    content = restored(repository, backup)
                except DamagedError:
                    if backup in self.kept - fresh:
                        raise
                else:
                    assert content == self.contents[backup]

        return work

    # --- turns ---

    def _enter(self, caches: list[Path]) -> Actor[None]:
        kinds = [
            (self._back_up, 6), (self._delete, 3), (self._undelete, 1), (self._protect, 1),
            (self._collect, 6), (self._verify, 1), (self._restore, 1),
        ]  # fmt: skip
        make = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        act = make()
        cache = self.random.choice(caches)

        def work(storage: StorageBackend) -> None:
            with self.stage.open(storage, cache=cache) as repository:
                act(repository)

        actor = self.stage.actor(work, name=f"{make.__name__}-{len(self.log)}")
        if make == self._back_up:
            self.writers.add(actor.name)
        self.log.append(f"{self.stage.clock.now:%d %H:%M} {actor.name} enters")
        return actor

    def seconds(self) -> float:
        """Return the time on the clock of whoever asks."""
        return self.standing.get(threading.current_thread().name, self.stage.clock.seconds())

    def play(self) -> None:
        """Let everybody act, check, and let time pass until all garbage must be gone."""
        caches = [self.stage.directory / name for name in ("a", "b", "c")]
        active: list[Actor[None]] = []
        left = ACTS
        while left or active:
            awake = [actor for actor in active if self.asleep.get(actor.name, 0) <= self.stage.clock.seconds()]
            if left and len(active) < MOST_AT_ONCE and (not awake or self.random.random() < 0.1):
                awake.append(self._enter(caches))
                active.append(awake[-1])
                left -= 1
            if not awake:
                until = min(self.asleep[actor.name] for actor in active)
                self.stage.pass_time(minutes=(until - self.stage.clock.seconds()) / 60 + 0.01)
                continue
            self._pass_time()
            actor = self.random.choice(awake)
            for _ in range(self.random.choice((1, 1, 3, 10, 40))):
                actor.step()
                if actor.finished or self._falls_asleep(actor):
                    break
            brink = (actor.call or "").startswith((*BRINKS, "stat manifests/"))
            if not self.calm and self.random.random() < (0.03 if brink else 0.002):
                self.log.append(f"{actor.name} is killed before: {actor.call}")
                actor.kill()
            if actor.finished:
                active.remove(actor)
                self._look_at(actor)
                self._pass_hours(active)
        assert not self.oracle.lost, self.oracle.lost
        self._end()

    def _falls_asleep(self, actor: Actor[None]) -> bool:
        """Let some pause where it hurts most, others meanwhile going on; whether this one does."""
        call = actor.call or ""
        likely = 0.5 if call.startswith("create manifests/") else 0.15 if call.startswith(BRINKS) else 0
        if self.random.random() >= likely:
            return False
        minutes = self.random.choice((5, 20, 70, 130, 1500, 1600, 3100))
        if actor.name in self.writers and self.calm:
            minutes = 2
        if minutes > 60:
            self.sleepers.add(actor.name)
        self.asleep[actor.name] = self.stage.clock.seconds() + 60 * minutes
        if self.random.random() < 0.3:
            self.standing[actor.name] = self.stage.clock.seconds()  # its host is suspended
        self.log.append(
            f"{self.stage.clock.now:%d %H:%M} {actor.name} sleeps for {minutes} minutes before: {actor.call}"
        )
        return True

    def _pass_time(self) -> None:
        if self.random.random() < 0.02:
            self.stage.pass_time(minutes=self.random.uniform(0.1, 1))

    def _pass_hours(self, active: list[Actor[None]]) -> None:
        busy = any(actor.name in self.writers for actor in active)
        if self.random.random() < 0.4 and not (busy and self.calm):
            hours = self.random.choice((0.3, 1.1, 1.1, 2, 13, 25))
            self.stage.pass_time(hours=hours)
            self.log.append(f"{hours} hours pass: {self.stage.clock.now:%d %H:%M}")

    def _look_at(self, actor: Actor[None]) -> None:
        kind, error = actor.name.split("-")[0], actor.error
        self.log.append(f"{self.stage.clock.now:%d %H:%M} {actor.name} ends: {error!r}")
        if error is None or actor.killed:
            return
        allowed: dict[str, tuple[type[BaseException], ...]] = {
            "_back_up": () if self.calm else (LostRaceError,),
            "_delete": (ProtectedError, NotFoundError),
            "_undelete": (UsageError, NotFoundError),
            "_protect": (UsageError, NotFoundError),
            "_restore": (NotFoundError,),
            "_collect": (DamagedError,) if self._may_give_up(actor) else (),
        }
        if not isinstance(error, LabBackupError) or not isinstance(error, allowed.get(kind, ())):
            raise error

    def _may_give_up(self, actor: Actor[None]) -> bool:
        """Whether a collector may have met what it cannot read. Then it has removed nothing.

        That is: an index that lists do not show yet, trees that moved again and again while it slept, or a backup that was published too late
        and is about to be withdrawn.
        """
        manifests = {path.removeprefix("manifests/") for path in self.stage.paths("manifests")}
        return bool(self.stage.lag) or actor.name in self.sleepers or not manifests <= self.oracle.watched

    def _end(self) -> None:
        """Check that what nobody deleted is whole, and that in time all garbage goes."""
        stage = self.stage
        stage.lag, stage.torn_lists = timedelta(0), False
        kept = {
            backup: self.contents[backup] for backup in self.kept if f"manifests/{backup}" in stage.paths("manifests")
        }
        if self.stage.lag == timedelta(0):
            assert set(kept) == self.kept, "a backup that nobody deleted is gone"
        with stage.open() as repository:
            for backup, content in kept.items():
                assert restored(repository, backup) == content
            result = verify(repository, read_data=True)
            unvetted = {path.removeprefix("manifests/") for path in stage.paths("manifests")} - self.kept
            assert all(touch.split("/")[0] in unvetted for damage in result.damage for touch in damage.touches)
        for backup in set(self.contents) - self.kept:
            with stage.open() as repository:
                repository.storage.delete(f"manifests/{backup}")
        for _ in range(14):
            stage.pass_time(hours=30)
            collector(stage).finish()
        assert not self.oracle.lost, self.oracle.lost
        for prefix in ("condemned", "removed", "leases", "damaged"):
            assert not stage.paths(prefix), prefix
        assert self.oracle.garbage() == 0


def _ignore(_: object) -> None:
    return


def _differences(old: bytes, new: bytes) -> list[Extent]:
    return [Extent(at, CHUNK) for at in range(0, len(new), CHUNK) if old[at : at + CHUNK] != new[at : at + CHUNK]]


def _play(seed: int, directory: Path, *, calm: bool, lag: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        source = Random(f"ids {seed}")
        patch.setattr(os, "urandom", source.randbytes)
        patch.setattr(random, "_urandom", source.randbytes)
        single_threaded(patch)
        run = Run(seed, directory, calm=calm, lag=lag)
        patch.setitem(BackupSession.__init__.__kwdefaults__ or {}, "clock", run.seconds)
        patch.setattr(reader, "time", SimpleNamespace(monotonic=run.seconds))
        patch.setattr(index_merge, "MANY_INDEXES", 3)
        try:
            run.play()
        except BaseException as error:
            run.stage.close()
            raise AssertionError(f"seed {seed}, calm={calm}, lag={lag}:\n" + "\n".join(run.log)) from error


@pytest.mark.parametrize("lag", [False, True], ids=["consistent", "lagging"])
@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
@pytest.mark.parametrize("part", range(2))
def test_nothing_is_lost_whatever_the_order_of_turns(fast_directory: Path, part: int, *, calm: bool, lag: bool) -> None:
    """Whoever does what when, every backup that was published and not deleted can be restored at every moment, and no garbage stays."""
    chosen = os.environ.get("LAB_BACKUP_SEED")
    seeds = [int(chosen)] if chosen else range(part * RUNS, (part + 1) * RUNS)
    for seed in seeds:
        directory = fast_directory / str(seed)
        directory.mkdir()
        _play(seed, directory, calm=calm, lag=lag)
