"""Death at every write of every operation: what `docs/format/crashes.md` says is left, and who cleans it up.

Each scene prepares a repository, then one operation dies after its first write, its second, and so on, until it survives. After each death the
repository is opened by another host, and by this one with the cache that the dead process left.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.extent import Extent
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect, undelete, unprotect
from lab_backup.operations.repositories import add_key, remove_key, rotate_key
from lab_backup.operations.verify import verify
from lab_backup.repository import keys
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.repository.errors import NotARepositoryError, WrongKeyError
from lab_backup.repository.keys import KeyFile, Secret
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.unlock import read_slots
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up, flip, restored
from support.faulty import CrashError, CrashPoint, FaultyStorage
from support.oracle import Oracle
from support.stage import Clock, Stage, blocks, gc, writer

DEFINITION = b"<domain/>"
OPERATION = "0123456789abcdef" * 2  # the id of the backup that the dying operation makes


@dataclass
class Scene:
    """An operation, and what every disk should hold by the id of its backup. All of `stays` must be there whatever happens."""

    act: Callable[[Repository], object]
    contents: dict[str, bytes] = field(default_factory=dict)
    stays: set[str] = field(default_factory=set)


class Past:
    """What happened before the operation: backups by name, their contents by id."""

    def __init__(self, stage: Stage) -> None:
        """Begin with nothing."""
        self.stage = stage
        self.contents: dict[str, bytes] = {}

    def keep(self, *numbers: int, name: str = "kept") -> str:
        """Make a backup that stays."""
        with self.stage.open() as repository:
            backup = back_up(repository, blocks(*numbers), name=name).backup
        self.contents[backup] = blocks(*numbers)
        return backup

    def waste(self, *numbers: int) -> None:
        """Make a backup and delete it for good."""
        with self.stage.open() as repository:
            delete(repository, back_up(repository, blocks(*numbers), name="waste").backup, now=True)

    def scene(self, act: Callable[[Repository], object], *, but: str | None = None) -> Scene:
        """Return the scene that follows; all backups stay but one that the operation may remove."""
        return Scene(act, self.contents, set(self.contents) - {but})


def _full(past: Past) -> Scene:
    past.keep(1, 2, 3, 4)
    content = blocks(1, 9, 3, 0, 5, 6, 7, 8)
    past.contents[OPERATION] = content
    return past.scene(
        lambda repository: back_up(repository, content, files={"domain.xml": DEFINITION}, backup_id=OPERATION),
        but=OPERATION,
    )


def _incremental(past: Past) -> Scene:
    past.keep(1, 2, 3, 4, name="guest")
    content = blocks(1, 2, 9, 4)
    past.contents[OPERATION] = content
    changes = [Extent(2 * CHUNK, CHUNK)]
    return past.scene(
        lambda repository: back_up(repository, content, changes=changes, backup_id=OPERATION), but=OPERATION
    )


def _rescuing(past: Past) -> Scene:
    """Set up a backup whose parent was published while its pack was condemned: it copies chunks before it is published."""
    past.waste(1, 2, 3)
    past.stage.pass_time(hours=25)
    first = writer(past.stage, blocks(1, 2, 3, 4))
    first.run_to("create manifests/")
    gc(past.stage)
    past.contents[first.finish().backup] = blocks(1, 2, 3, 4)
    return Scene(_incremental_act(past), past.contents, set(past.contents) - {OPERATION})


def _incremental_act(past: Past) -> Callable[[Repository], object]:
    past.contents[OPERATION] = blocks(1, 2, 3, 5)
    return lambda repository: back_up(
        repository, blocks(1, 2, 3, 5), changes=[Extent(3 * CHUNK, CHUNK)], backup_id=OPERATION
    )


def _delete(past: Past) -> Scene:
    backup = past.keep(1, 2, 3)
    return past.scene(lambda repository: delete(repository, backup))


def _delete_now(past: Past) -> Scene:
    past.keep(1, 4, 5)
    backup = past.keep(1, 2, 3)
    with past.stage.open() as repository:
        verify(repository, [backup])
    return past.scene(lambda repository: delete(repository, backup, now=True), but=backup)


def _undelete(past: Past) -> Scene:
    backup = past.keep(1, 2, 3)
    with past.stage.open() as repository:
        delete(repository, backup)
    return past.scene(lambda repository: undelete(repository, backup))


def _protect(past: Past) -> Scene:
    backup = past.keep(1, 2, 3)
    return past.scene(lambda repository: (protect(repository, backup), unprotect(repository, backup)))


def _verify(past: Past) -> Scene:
    past.keep(1, 2, 3)
    past.keep(4, 5)
    return past.scene(lambda repository: verify(repository, read_data=True))


def _condemning(past: Past) -> Scene:
    past.waste(1, 2, 3, 4, 5, 6)
    past.keep(1, 9)
    past.stage.pass_time(hours=25)
    return past.scene(collect)


def _removing(past: Past) -> Scene:
    scene = _condemning(past)
    gc(past.stage)
    past.stage.pass_time(hours=25)
    return scene


def _tidying(past: Past) -> Scene:
    scene = _removing(past)
    gc(past.stage)
    past.stage.pass_time(hours=2)
    return scene


def _forgetting(past: Past) -> Scene:
    scene = _tidying(past)
    gc(past.stage)
    past.stage.pass_time(hours=200)
    return scene


def _expiring(past: Past) -> Scene:
    past.keep(1, 2, 3)
    backup = past.keep(1, 4, 5)
    with past.stage.open() as repository:
        verify(repository, [backup])
        delete(repository, backup)
    past.stage.pass_time(hours=26)
    return past.scene(collect, but=backup)


def _sparing(past: Past) -> Scene:
    """Set up a pack that was condemned just before a backup that needs it was published, and whose time has come."""
    scene = _rescuing(past)
    del past.contents[OPERATION]
    past.stage.pass_time(hours=25)
    return Scene(collect, past.contents, scene.stays)


def _reindexing(past: Past) -> Scene:
    """Set up packs that no index object names, and one whose index object is damaged."""
    past.keep(1, 2, 3, 4, 5, 6, 7, 8)
    past.keep(11, 12)
    lost, broken, *_ = sorted(past.stage.paths("index"))
    past.stage.storage.delete(lost)
    flip(past.stage.storage, broken, -20)
    past.stage.pass_time(hours=25)
    return past.scene(collect)


def _merging(past: Past) -> Scene:
    for number in range(1, 6):
        past.keep(number, number + 10)
    past.stage.pass_time(hours=25)
    return past.scene(collect)


def _exclusive(past: Past) -> Scene:
    past.waste(1, 2, 3, 4, 5, 6)
    past.keep(1, 9)
    past.stage.pass_time(hours=1)
    return past.scene(lambda repository: collect(repository, grace=0, exclusive=True))


SCENES = (
    _full, _incremental, _rescuing, _delete, _delete_now, _undelete, _protect, _verify, _condemning, _removing, _tidying,
    _forgetting, _expiring, _sparing, _reindexing, _merging, _exclusive,
)  # fmt: skip


def _copy(storage: MemoryStorage, clock: Clock) -> MemoryStorage:
    copy = MemoryStorage(clock=clock)
    copy._objects = dict(storage._objects)
    return copy


def _deaths(stage: Stage, scene: Scene) -> Iterator[tuple[int, Path]]:
    """Let the operation die after each of its writes; yield how many there were and the dead process's cache. Last of all it survives."""
    before, moment = stage.storage, stage.clock.now
    for survived in itertools.count():
        stage.clock.now = moment
        stage.storage = _copy(before, stage.clock)
        point = CrashPoint(survived, "after") if survived else CrashPoint(1, "before")
        storage = FaultyStorage(stage.storage, crash=point)
        cache = stage.directory / f"dead-{survived}"
        died = False
        try:
            with stage.open(storage, cache=cache) as repository:
                scene.act(repository)
        except CrashError:
            died = True
        stage.observers.clear()
        yield survived, cache
        if not died:
            assert survived > storage.writes > 0
            return


@pytest.mark.parametrize("make", SCENES, ids=[make.__name__.strip("_") for make in SCENES])
def test_every_backup_survives_death_after_any_write(stage: Stage, make: Callable[[Past], Scene]) -> None:
    """What was committed restores and verifies, the next backup and the next collections succeed, and in the end nothing of the dead is left."""
    scene = make(Past(stage))
    for survived, cache in _deaths(stage, scene):
        where = f"dead after write {survived}"
        for place in (cache, stage.directory / f"other-{survived}"):
            with stage.open(cache=place) as repository:
                there = [backup.id for backup in Backups(repository).all()]
                assert scene.stays <= set(there) <= set(scene.contents), where
                for identity in there:
                    assert restored(repository, identity) == scene.contents[identity], where
        expected = dict(scene.contents)
        with stage.open(cache=cache) as repository:
            found = verify(repository, read_data=True).damage
            assert not found or make == _reindexing, (where, found)
            content = blocks(1, 2, 3, 21, 22)
            fresh = back_up(repository, content, name="fresh").backup
            expected[fresh] = content
            assert restored(repository, fresh) == content, where
            for backup in Backups(repository).all():  # whatever was marked as deleted shall stay
                if backup.state.deleted is not None and backup.id in scene.stays:
                    undelete(repository, backup.id)
        for hours in (25, 25, 25, 25, 200, 200):
            stage.pass_time(hours=hours)
            gc(stage)
        _check_end(stage, expected, scene.stays | {fresh}, where)


def _check_end(stage: Stage, expected: dict[str, bytes], stays: set[str], where: str) -> None:
    oracle = Oracle(stage)
    with stage.open() as repository:
        result = verify(repository, read_data=True)
        assert not result.damage, (where, result.damage)
        there = {path.removeprefix("manifests/") for path in stage.paths("manifests")}
        assert there >= stays, where
        for backup in there:
            assert restored(repository, backup) == expected[backup], where
            oracle.watch(backup, expected[backup], *([DEFINITION] if backup == OPERATION else []))
    assert oracle.garbage() == 0, where
    for prefix in ("condemned", "removed", "leases", "damaged"):
        assert not stage.paths(prefix), (where, prefix)
    assert {path.split("/")[1] for path in stage.paths("marks")} <= there, where


def test_a_repository_that_was_half_made_is_none(stage: Stage) -> None:
    """Before the last write there is no repository, and making one there says what is in the way; after it there is one."""
    for survived in range(1, 5):
        storage = FaultyStorage(MemoryStorage(), crash=CrashPoint(survived, "after"))
        with pytest.raises(CrashError):
            create_repository(storage, passphrase=None)
        if survived < 3:
            with pytest.raises(NotARepositoryError):
                open_repository(storage.inner, passphrase=None, cache_directory=stage.directory)
            with pytest.raises(UsageError, match="interrupted"):
                create_repository(storage.inner, passphrase=None)
        else:
            with open_repository(storage.inner, passphrase=None, cache_directory=stage.directory) as repository:
                assert bool(verify(repository).damage) == (survived == 3), "its copy is still to come"
                collect(repository)
                assert not verify(repository).damage


def _without(storage: MemoryStorage, path: str) -> None:
    storage.delete(path)


def _spoilt(storage: MemoryStorage, path: str) -> None:
    flip(storage, path, 200)


@pytest.mark.parametrize("act", [collect, lambda repository: back_up(repository, blocks(1, 2))], ids=["gc", "backup"])
@pytest.mark.parametrize("harm", [_without, _spoilt])
@pytest.mark.parametrize("path", ["config", "config.copy"])
def test_a_config_being_mended_is_there_whatever_happens(
    stage: Stage, path: str, harm: Callable[[MemoryStorage, str], None], act: Callable[[Repository], object]
) -> None:
    """Death after any write of what mends `config` or its copy leaves a repository that opens, and the next one completes it."""
    harm(stage.storage, path)
    before = stage.storage
    for survived in itertools.count(1):
        stage.storage = _copy(before, stage.clock)
        storage = FaultyStorage(stage.storage, crash=CrashPoint(survived, "after"))
        place = stage.directory / str(survived)
        died = False
        try:
            with open_repository(storage, passphrase=None, cache_directory=place) as repository:
                act(repository)
        except CrashError:
            died = True
        with open_repository(stage.storage, passphrase=None, cache_directory=place) as repository:
            collect(repository)
            assert not verify(repository).damage, survived
        assert stage.storage.read("config") == stage.storage.read("config.copy") == stage.config.encode()
        if not died:
            return


def test_keys_open_the_repository_whenever_their_change_is_interrupted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is being added or removed opens the repository or does not; the others always do."""
    monkeypatch.setattr(keys, "MEMORY_KIB", 64)
    empty = MemoryStorage()
    create_repository(empty, passphrase="old")
    old = read_slots(empty)[0].id
    changes: tuple[tuple[Callable[[Repository], object], ...], ...] = (
        (lambda repository: add_key(repository, "new", label="new"),),
        (lambda repository: add_key(repository, "new", label="new"), lambda repository: remove_key(repository, old)),
        (lambda repository: rotate_key(repository, old, KeyFile(b"n" * 32)),),
    )
    for steps in changes:
        for survived in range(4):
            inner = _copy(empty, stage.clock)
            point = CrashPoint(survived, "after") if survived else CrashPoint(1, "before")
            storage = FaultyStorage(inner, crash=point)
            with open_repository(inner, passphrase="old", cache_directory=stage.directory) as repository:
                repository.storage = storage
                try:
                    for step in steps:
                        step(repository)
                except CrashError:
                    pass
            secrets: tuple[Secret, ...] = ("old", "new", KeyFile(b"n" * 32))
            opened = [secret for secret in secrets if _opens(inner, secret, stage.directory)]
            assert opened, survived
            if steps == changes[0]:
                assert "old" in opened
            if steps == changes[2] and survived in {2, 3}:
                assert opened == [secrets[2]], "the old key is gone"


def _opens(storage: MemoryStorage, secret: Secret, directory: Path) -> bool:
    try:
        open_repository(storage, passphrase=secret, cache_directory=directory).close()
    except WrongKeyError:
        return False
    except LabBackupError as error:
        raise AssertionError("opening fails in another way") from error
    return True
