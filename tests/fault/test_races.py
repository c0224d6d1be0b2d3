"""Two or three actors, one bad moment each: the schedules that `docs/format/concurrency.md` argues about, played step by step."""

import itertools
from datetime import timedelta

import pytest

from lab_backup.errors import BusyError, UsageError
from lab_backup.extent import Extent
from lab_backup.operations.catalogue import BackupSummary
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect, undelete
from lab_backup.operations.repositories import add_key, remove_key
from lab_backup.operations.verify import VerifyResult, verify
from lab_backup.repository import keys
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.repository.errors import LostRaceError, RepositoryExistsError
from lab_backup.repository.keys import KeySlot
from lab_backup.repository.repository import open_repository
from lab_backup.repository.session import BackupSession
from lab_backup.repository.unlock import read_slots
from lab_backup.storage.base import StorageBackend
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, MemoryDisk, back_up, restored
from support.stage import Actor, Stage, blocks, collector, gc, writer

HOUR = 3600


def assert_whole(stage: Stage, backup: str, content: bytes) -> None:
    """Restore with a fresh cache, compare every byte, and verify the repository."""
    with stage.open() as repository:
        assert restored(repository, backup) == content
        result = verify(repository, read_data=True)
        assert (result.corrupt, result.missing) == (0, 0), result.damage


def garbage(stage: Stage, content: bytes) -> None:
    """Store `content` in a backup, remove it, and let a day pass: its packs are old and belong to nobody."""
    with stage.open() as repository:
        delete(repository, back_up(repository, content, name="gone").backup, now=True)
    stage.pass_time(hours=25)


def test_exclusive_repack_keeps_chunks_that_were_stored_twice(stage: Stage) -> None:
    """A sparse pack whose needed chunk also lies in a pack that is removed in the same run is copied before it goes."""
    first = writer(stage, blocks(1, 2, 3))
    second = writer(stage, blocks(1, 4, 5))
    first.run_to("upload packs/")  # both have decided to store chunk 1
    second.run_to("upload packs/")
    one, two = first.finish(), second.finish()
    with stage.open() as repository:
        kept = back_up(repository, blocks(1), name="kept")
        delete(repository, one.backup, now=True)
        delete(repository, two.backup, now=True)
        stage.pass_time(hours=1)
        collect(repository, grace=0, exclusive=True)
        collect(repository, grace=0, exclusive=True)
    assert_whole(stage, kept.backup, blocks(1))


def test_late_writer_does_not_trust_what_a_collector_is_about_to_remove(stage: Stage) -> None:
    """A writer that slept through the grace period, between its last look and the commit, copies or gives up; never loses."""
    garbage(stage, blocks(1, 2, 3))
    late = writer(stage, blocks(1, 2, 3))
    late.run_to("create manifests/")
    gc(stage)
    stage.pass_time(hours=25)
    remover = collector(stage)
    remover.run_to("upload removed/")  # it has read all manifests
    backup = None
    try:
        backup = late.finish()
    except LostRaceError:
        assert not stage.paths("manifests")
    remover.finish()
    if backup is not None:
        assert_whole(stage, backup.backup, blocks(1, 2, 3))


def test_a_clock_that_stood_still_does_not_hide_lateness(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer in a VM that was paused sees no time pass on its own clock; the storage's clock tells it."""
    monkeypatch.setitem(BackupSession.__init__.__kwdefaults__ or {}, "clock", lambda: 0.0)
    garbage(stage, blocks(1, 2, 3))
    late = writer(stage, blocks(1, 2, 3))
    late.run_to("create manifests/")
    gc(stage)
    stage.pass_time(hours=25)
    gc(stage)
    with pytest.raises(LostRaceError):
        late.finish()
    assert not stage.paths("manifests")


def test_packs_of_a_slow_backup_are_watched_before_they_are_full_enough_for_an_index(stage: Stage) -> None:
    """Packs that wait for their index object while a long disk is read are saved when a collector condemns them."""
    with stage.open() as repository:
        back_up(repository, blocks(9), name="other")
    content = blocks(1, 2, 3, 4, *range(9, 10), *[9] * 400)

    class SlowDisk(MemoryDisk):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            if offset > 64 * CHUNK:
                stage.pass_time(hours=6)
                gc(stage, grace=HOUR)

    with stage.open() as repository:
        backup = back_up(repository, SlowDisk(content))
    assert_whole(stage, backup.backup, content)


def test_increment_does_not_inherit_from_a_condemned_pack(stage: Stage) -> None:
    """The parent was published while its chunks were being condemned, and it is deleted as its child is published."""
    garbage(stage, blocks(1, 2, 3))
    first = writer(stage, blocks(1, 2, 3, 4))
    first.run_to("create manifests/")
    gc(stage)  # condemns the pack with 1, 2, 3: nobody refers to it yet
    parent = first.finish()
    stage.pass_time(hours=25)
    child = writer(stage, blocks(1, 2, 3, 5), changes=[Extent(3 * CHUNK, CHUNK)])
    child.run_to("create manifests/")
    with stage.open() as repository:
        delete(repository, parent.backup, now=True)
    gc(stage)
    backup = child.finish()
    assert_whole(stage, backup.backup, blocks(1, 2, 3, 5))


def test_own_index_objects_survive_a_lagging_list(stage: Stage) -> None:
    """A list that does not show what was written a minute ago neither fails a backup nor loses it."""
    stage.lag = timedelta(minutes=9)
    backup = writer(stage, blocks(1, 2, 3, 4, 5, 6, 7, 8)).finish()
    assert_whole(stage, backup.backup, blocks(1, 2, 3, 4, 5, 6, 7, 8))


def test_writer_notices_that_a_place_moved_while_it_was_condemned(stage: Stage) -> None:
    """What was found in a pack that is condemned now may meanwhile lie in another one, which must be watched from then on."""
    garbage(stage, blocks(1, 2, 3))
    slow = writer(stage, blocks(1, 2, 3, 4))
    slow.run_to("upload packs/")  # it has decided to reuse 1, 2 and 3
    gc(stage)
    other = writer(stage, blocks(1, 2, 3), name="other").finish()  # stores them again
    slow.run_to("create manifests/")
    with stage.open() as repository:
        delete(repository, other.backup, now=True)
    backup = slow.finish()
    for _ in range(4):
        stage.pass_time(hours=25)
        gc(stage)
    assert_whole(stage, backup.backup, blocks(1, 2, 3, 4))


def test_rescue_from_a_pack_that_goes_in_that_moment_is_a_lost_race(stage: Stage) -> None:
    """A pack removed between the reading of its table and of its chunks ends the backup as a lost race, not as damage."""
    garbage(stage, blocks(1, 2, 3))
    pack = max(stage.paths("packs"), key=lambda path: stage.storage.stat(path).size)
    slow = writer(stage, blocks(1, 2, 3, 4))
    slow.run_to("upload packs/")
    gc(stage)
    stage.pass_time(hours=25)
    for _ in range(3):  # header, trailer, table
        slow.run_to(f"read {pack}")
    slow.run_to(f"read {pack}")
    gc(stage)
    with pytest.raises(LostRaceError):
        slow.finish()
    assert pack not in stage.paths("packs")


def test_writer_that_found_a_pack_missing_lets_the_next_one_store_it_again(stage: Stage) -> None:
    """A pack that vanished from the storage fails the first backup that relies on it, and no other."""
    with stage.open() as repository:
        back_up(repository, blocks(1, 2, 3), name="other")
    data = [path for path in stage.paths("packs") if stage.storage.stat(path).size > CHUNK]
    stage.storage.delete(data[0])
    with pytest.raises(LostRaceError, match="is gone"):
        writer(stage, blocks(1, 2, 3, 4)).finish()
    backup = writer(stage, blocks(1, 2, 3, 4)).finish()
    with stage.open() as repository:
        assert restored(repository, backup.backup) == blocks(1, 2, 3, 4)


def test_undelete_at_the_brink_either_holds_or_says_so(stage: Stage) -> None:
    """Somebody who sleeps between the check of the grace period and the mark is told that it is too late."""
    with stage.open() as repository:
        backup = back_up(repository, blocks(1, 2))
        delete(repository, backup.backup)
    stage.pass_time(hours=23.9)

    def work(storage: StorageBackend) -> BackupSummary:
        with stage.open(storage) as repository:
            return undelete(repository, backup.backup)

    saver = stage.actor(work, name="saver")
    saver.run_to("upload marks/")
    stage.pass_time(hours=2)
    remover = collector(stage)
    remover.run_to("delete manifests/")
    with pytest.raises(UsageError, match="grace"):
        saver.finish()
    remover.finish()
    assert not stage.paths("manifests")


def test_a_shorter_grace_period_does_not_shorten_the_time_to_undelete(stage: Stage) -> None:
    """`gc --grace 3600` beside others frees packs sooner, but a deletion can be taken back for as long as was promised."""
    with stage.open() as repository:
        backup = back_up(repository, blocks(1, 2))
        delete(repository, backup.backup)
    stage.pass_time(hours=5)
    assert gc(stage, grace=HOUR).backups_removed == []
    with stage.open() as repository:
        undelete(repository, backup.backup)
    assert_whole(stage, backup.backup, blocks(1, 2))


def test_two_collectors_at_once_remove_no_more_than_one_would(stage: Stage) -> None:
    """Every step of one collector lies between two of another; what backups need stays, and what they do not goes."""
    garbage(stage, blocks(7, 8, 9))
    with stage.open() as repository:
        backup = back_up(repository, blocks(1, 2, 3, 7))
    for _ in range(5):
        stage.pass_time(hours=25)
        first, second = collector(stage), collector(stage)
        while not (first.finished and second.finished):
            for one in (first, second):
                if not one.finished:
                    one.step()
        assert first.error is None
        assert second.error is None
    assert_whole(stage, backup.backup, blocks(1, 2, 3, 7))
    assert not stage.paths("condemned")


def test_verification_beside_a_collector_raises_no_false_alarm(stage: Stage) -> None:
    """A backup that is deleted and collected while it is verified, and packs that move meanwhile, are not called damage."""
    with stage.open() as repository:
        doomed = back_up(repository, blocks(1, 2, 3, 4), name="doomed")
        kept = back_up(repository, blocks(1, 5, 6, 7), name="kept")

    def work(storage: StorageBackend) -> VerifyResult:
        with stage.open(storage) as repository:
            return verify(repository, read_data=True)

    checker = stage.actor(work, name="checker")
    checker.run_to("list packs")
    checker.step()
    with stage.open() as repository:
        delete(repository, doomed.backup, now=True)
    for _ in range(3):
        stage.pass_time(hours=25)
        gc(stage)
    result = checker.finish()
    assert (result.corrupt, result.missing) == (0, 0), result.damage
    assert not stage.paths("damaged")
    assert_whole(stage, kept.backup, blocks(1, 5, 6, 7))


def test_removed_packs_stay_removed_when_a_collector_sleeps_before_it_publishes_an_index(stage: Stage) -> None:
    """An index object that a slow collector publishes long after it read the others leads nobody to packs that are gone."""
    garbage(stage, blocks(1, 2, 3))
    with stage.open() as repository:
        back_up(repository, blocks(1, 2, 3, 4), name="half")
        delete(repository, back_up(repository, blocks(7, 8, 9), name="gone too").backup, now=True)
    stage.pass_time(hours=25)
    gc(stage)
    stage.pass_time(hours=25)
    slow = collector(stage)
    slow.run_to("upload index/")
    with stage.open() as repository:
        for held in Backups(repository).all():
            delete(repository, held.id, now=True)
    for _ in range(30):
        stage.pass_time(hours=25)
        gc(stage)
    assert not stage.paths("packs")
    slow.finish()
    backup = writer(stage, blocks(1, 2, 3)).finish()
    assert_whole(stage, backup.backup, blocks(1, 2, 3))


def test_protection_and_deletion_at_once_do_not_both_succeed(stage: Stage) -> None:
    """Of somebody who protects a backup and somebody who deletes it for good in the same moment, at least one is told."""
    for order in itertools.product((True, False), repeat=6):
        with stage.open() as repository:
            backup = back_up(repository, blocks(1, 2)).backup

        def remove(storage: StorageBackend, backup: str = backup) -> None:
            with stage.open(storage) as repository:
                delete(repository, backup, now=True)

        def keep(storage: StorageBackend, backup: str = backup) -> None:
            with stage.open(storage) as repository:
                protect(repository, backup)

        remover, keeper = stage.actor(remove, name="remover"), stage.actor(keep, name="keeper")
        remover.run_to("upload marks/")
        keeper.run_to("upload marks/")
        for first in order:
            for one in (remover, keeper) if first else (keeper, remover):
                if not one.finished:
                    one.step()
        while not (remover.finished and keeper.finished):
            for one in (remover, keeper):
                if not one.finished:
                    one.step()
        assert remover.error or keeper.error
        assert (f"manifests/{backup}" in stage.paths("manifests")) == (
            keeper.error is None or remover.error is not None
        )


def test_two_who_remove_the_last_two_keys_leave_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds that the other one removed the other key puts his own back."""
    monkeypatch.setattr(keys, "MEMORY_KIB", 64)
    storage = MemoryStorage()
    create_repository(storage, passphrase="one")
    with open_repository(storage, passphrase="one", cache_directory=stage.directory) as repository:
        add_key(repository, "two", label="two")
        stage.config, stage.keys, stage.storage = repository.config, repository.keys, storage
    first, second = read_slots(storage)

    def remove(slot: KeySlot) -> Actor[None]:
        def work(staged: StorageBackend) -> None:
            with stage.open(staged) as repository:
                remove_key(repository, slot.id)

        return stage.actor(work)

    both = remove(first), remove(second)
    for one in both:
        one.run_to("delete keys/")
    while not all(one.finished for one in both):
        for one in both:
            if not one.finished:
                one.step()
    assert any(isinstance(one.error, BusyError) for one in both)
    assert read_slots(storage)


def test_two_who_make_a_repository_at_once_make_one(stage: Stage) -> None:
    """The loser is told, and leaves no key behind that is not the repository's."""
    stage.storage = storage = MemoryStorage()
    both = [stage.actor(lambda staged: create_repository(staged, passphrase=None)) for _ in range(2)]
    for one in both:
        one.run_to("create ")
    while not all(one.finished for one in both):
        for one in both:
            if not one.finished:
                one.step()
    assert [type(one.error) for one in both].count(RepositoryExistsError) == 1
    assert len(stage.paths("keys")) == 1
    open_repository(storage, passphrase=None, cache_directory=stage.directory).close()


@pytest.mark.parametrize("lag", [0, 9], ids=["consistent", "lagging"])
def test_another_process_that_reloads_the_shared_cache_fails_nobody(stage: Stage, lag: int) -> None:
    """A cache that is thrown away at the very moment in which a writer works out what it relies on is not taken for lost packs."""
    with stage.open() as repository:
        back_up(repository, blocks(1, 2, 3), name="other")
    stage.pass_time(hours=1)
    stage.lag = timedelta(minutes=lag)
    cache = stage.directory / "shared"

    def write(storage: StorageBackend) -> BackupSummary:
        with stage.open(storage, cache=cache) as repository:
            return back_up(repository, blocks(1, 2, 3, 4, 5))

    def reload(storage: StorageBackend) -> None:
        with stage.open(storage, cache=cache) as repository:
            repository.reload()

    one, other = stage.actor(write), stage.actor(reload)
    for _ in range(2):  # a new process and its first reload both begin with the lists of condemned packs
        other.run_to("list condemned")
    one.run_to("upload index/")
    one.run_to("list index")
    other.kill()
    with stage.open(cache=cache) as repository:
        repository.cache.clear()
    backup = one.finish()
    stage.pass_time(hours=1)
    assert_whole(stage, backup.backup, blocks(1, 2, 3, 4, 5))


def test_an_index_that_comes_late_names_no_pack_that_went_meanwhile(stage: Stage) -> None:
    """A collector that slept while it rewrote the index takes out of it what others removed, and leaves the rest in it."""
    with stage.open() as repository:
        kept = [back_up(repository, blocks(number), name=f"kept {number}").backup for number in range(1, 6)]
        goes = back_up(repository, blocks(7), name="goes").backup
    stage.pass_time(hours=25)
    slow = collector(stage)
    slow.run_to("upload index/")
    with stage.open() as repository:
        delete(repository, goes, now=True)
    for _ in range(3):
        stage.pass_time(hours=25)
        gc(stage)
    slow.run_to("upload leases/clock-")  # it has published what names the pack that went
    for _ in range(2):
        stage.pass_time(hours=2)
        gc(stage)  # deletes index objects in favour of that one
    slow.finish()
    for _ in range(3):
        gc(stage)
        stage.pass_time(hours=200)
    backup = writer(stage, blocks(7, 8)).finish()
    assert_whole(stage, backup.backup, blocks(7, 8))
    assert_whole(stage, kept[-1], blocks(5))


def test_a_long_proof_does_not_make_the_commit_late(stage: Stage) -> None:
    """Where it takes long to see that all packs are there, the lists are looked at again before the commit, not the whole backup after it."""
    with stage.open() as repository:
        back_up(repository, blocks(1, 2, 3), name="other")
    slow = writer(stage, blocks(1, 2, 3, 4))
    slow.run_to("list packs")
    stage.pass_time(minutes=11)
    slow.run_to("list condemned")
    slow.run_to("create manifests/")
    slow.step()
    assert slow.call is not None
    assert slow.call.startswith("stat manifests/")
    slow.step()
    assert slow.call.startswith("delete leases/")
    assert_whole(stage, slow.finish().backup, blocks(1, 2, 3, 4))


def test_nobody_inherits_what_a_late_and_killed_writer_lacked(stage: Stage) -> None:
    """A writer that slept too long and was killed right after its commit leaves a broken backup; increments over it notice, and heal."""
    garbage(stage, blocks(1, 2, 3))
    late = writer(stage, blocks(1, 2, 3, 4))
    late.run_to("create manifests/")
    gc(stage)
    stage.pass_time(hours=25)
    gc(stage)
    stage.pass_time(hours=2)
    late.step()
    late.kill()
    assert stage.paths("manifests")  # nobody was told that it is complete
    content = blocks(1, 2, 3, 5)
    changes = [Extent(3 * CHUNK, CHUNK)]
    with pytest.raises(LostRaceError, match="parent"):
        writer(stage, content, changes=changes).finish()
    backup = writer(stage, content, changes=changes).finish()
    with stage.open() as repository:
        assert restored(repository, backup.backup) == content
