"""Death at every write of a backup of a tree of files that has two passes and builds on another: what is left is garbage, never damage."""

import itertools

from lab_backup.operations.lifecycle import delete
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.manifest import TreeEntry
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK
from support.faulty import CrashError, CrashPoint, FaultyStorage
from support.stage import Clock, Stage, gc
from support.stored_trees import NOW, SECOND, File, MemoryTree, contents_of, flat, publish, store_tree, stored_tree

OPERATION = "0123456789abcdef" * 2


def _first() -> MemoryTree:
    return MemoryTree(
        {
            **{b"small/%02d" % number: File([bytes([number]) * 700]) for number in range(40)},
            b"large": File([bytes([number]) * CHUNK for number in range(1, 12)]),
        }
    )


def _second() -> MemoryTree:
    tree = _first()
    tree.files[b"small/07"] = File([b"changed"], touched_ns=NOW + SECOND)
    tree.files[b"zz"] = File([bytes(range(256)) * 200], touched_ns=NOW + SECOND)
    return tree


def _expected(tree: MemoryTree) -> dict[bytes, bytes]:
    return {path: flat(file.data) for path, file in tree.files.items()}


def _two_passes(repository: Repository, previous: TreeEntry) -> None:
    with BackupSession(repository, OPERATION) as session:
        first = session.write_file_tree("data", _first(), previous, began_ns=NOW + 10 * SECOND)
        second = session.write_file_tree("data", _second(), first.entry, began_ns=NOW + 20 * SECOND)
        publish(session, repository, second.entry)


def _copy(storage: MemoryStorage, clock: Clock) -> MemoryStorage:
    copy = MemoryStorage(clock=clock)
    for info in storage.list():
        copy.upload(info.path, storage.read(info.path))
    return copy


def test_trees_survive_death_after_any_write(stage: Stage) -> None:
    """Whatever was committed is whole, the next backup builds on it and succeeds, and collections leave what is needed and nothing else."""
    with stage.open() as repository:
        kept, written = store_tree(repository, _first())
    contents = {kept.backup: _expected(_first()), OPERATION: _expected(_second())}
    before = stage.storage
    for survived in itertools.count(1):
        stage.storage = _copy(before, stage.clock)
        storage = FaultyStorage(stage.storage, crash=CrashPoint(survived, "after"))
        cache = stage.directory / f"dead-{survived}"
        died = False
        try:
            with stage.open(storage, cache=cache) as repository:
                _two_passes(repository, written.entry)
        except CrashError:
            died = True
        stage.observers.clear()
        with stage.open(cache=cache) as repository:
            there = [backup.id for backup in Backups(repository).all()]
            assert {kept.backup} <= set(there) <= set(contents), survived
            assert not verify(repository, read_data=True).damage, survived
            fresh, _ = store_tree(repository, _second(), written.entry)
        for hours in (25, 25, 200):
            stage.pass_time(hours=hours)
            gc(stage)
        with stage.open() as repository:
            for backup in there:
                assert contents_of(stored_tree(repository, backup)) == contents[backup], survived
            assert contents_of(stored_tree(repository, fresh.backup)) == contents[OPERATION], survived
            assert not verify(repository, read_data=True).damage, survived
            for backup in [*there, fresh.backup]:
                delete(repository, backup, now=True)
        for hours in (25, 25, 200):
            stage.pass_time(hours=hours)
            gc(stage)
        assert not stage.paths("packs"), survived
        if not died:
            assert survived > 6
            return
