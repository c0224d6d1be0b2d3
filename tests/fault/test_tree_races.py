"""A backup of a tree that builds on another, while that one is deleted and collected."""

import pytest

from lab_backup.operations.lifecycle import delete
from lab_backup.operations.verify import verify
from lab_backup.repository.errors import LostRaceError
from lab_backup.repository.manifest import TreeEntry
from lab_backup.repository.session import BackupSession, new_backup_id
from support.engine import CHUNK
from support.stage import Stage, gc
from support.stored_trees import NOW, SECOND, File, MemoryTree, contents_of, flat, publish, store_tree, stored_tree


def _tree() -> MemoryTree:
    return MemoryTree(
        {
            **{b"small/%02d" % number: File([bytes([number]) * 700]) for number in range(40)},
            b"large": File([bytes([number]) * CHUNK for number in range(1, 12)]),
        }
    )


def _old(stage: Stage) -> tuple[str, TreeEntry]:
    """Make a backup that is old enough to be collected once it is deleted."""
    with stage.open() as repository:
        summary, written = store_tree(repository, _tree())
    stage.pass_time(hours=25)
    return summary.backup, written.entry


def _give_up(stage: Stage, backup: str) -> None:
    with stage.open() as repository:
        delete(repository, backup, now=True)
    gc(stage)


def _assert_whole(stage: Stage, backup: str, tree: MemoryTree) -> None:
    with stage.open() as repository:
        assert contents_of(stored_tree(repository, backup)) == {
            path: flat(file.data) for path, file in tree.files.items()
        }
        assert not verify(repository, read_data=True).damage


def test_what_is_condemned_under_a_tree_is_saved(stage: Stage) -> None:
    """The backup that files were taken over from is deleted, and its packs condemned, before the new one is published: it saves them first."""
    old, entry = _old(stage)
    tree = _tree()
    tree.files[b"small/07"] = File([b"changed"], touched_ns=NOW + SECOND)
    with stage.open() as repository, BackupSession(repository, new_backup_id()) as session:
        written = session.write_file_tree("data", tree, entry, began_ns=NOW + 9 * SECOND)
        assert tree.read == [b"small/07"]
        _give_up(stage, old)
        summary = publish(session, repository, written.entry)
    for _ in range(3):
        stage.pass_time(hours=25)
        gc(stage)
    _assert_whole(stage, summary.backup, tree)


def test_a_tree_whose_chunks_were_removed_is_not_published(stage: Stage) -> None:
    """Nobody looked for more than the grace period, and what files were taken over from is gone: the backup says so and does not exist."""
    old, entry = _old(stage)
    with stage.open() as repository, BackupSession(repository, new_backup_id()) as session:
        written = session.write_file_tree("data", _tree(), entry, began_ns=NOW + 9 * SECOND)
        _give_up(stage, old)
        stage.pass_time(hours=25)
        gc(stage)
        with pytest.raises(LostRaceError):
            publish(session, repository, written.entry)
    assert not stage.paths("manifests")


def test_condemned_chunks_are_read_again(stage: Stage) -> None:
    """What is condemned when a file's turn comes is not relied on: the file is read, and stored once more."""
    old, entry = _old(stage)
    _give_up(stage, old)
    tree = _tree()
    with stage.open() as repository:
        summary, written = store_tree(repository, tree, entry, began_ns=NOW + 9 * SECOND)
    assert set(tree.read) == set(tree.files)
    assert written.warnings == ()
    for _ in range(3):
        stage.pass_time(hours=25)
        gc(stage)
    _assert_whole(stage, summary.backup, tree)


def test_a_first_pass_whose_packs_are_condemned_is_saved(stage: Stage) -> None:
    """Between two passes of one backup its own packs look like garbage to a collector: the second pass, or the publication, saves them."""
    with stage.open() as repository, BackupSession(repository, new_backup_id()) as session:
        first = session.write_file_tree("data", _tree(), None, began_ns=NOW)
        session.flush()
        stage.pass_time(hours=25)
        gc(stage)
        tree = _tree()
        tree.files[b"more"] = File([b"more"], touched_ns=NOW + SECOND)
        second = session.write_file_tree("data", tree, first.entry, began_ns=NOW + 9 * SECOND)
        summary = publish(session, repository, second.entry)
    for _ in range(3):
        stage.pass_time(hours=25)
        gc(stage)
    _assert_whole(stage, summary.backup, tree)
