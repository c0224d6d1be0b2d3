"""Trees of files in a repository: whole, incremental, healed, and true to what their source held when it was read."""

import os
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.filetree import FileContent, FileKind, FileRecord
from lab_backup.operations.collect import collect
from lab_backup.operations.export import export_tar
from lab_backup.operations.lifecycle import delete
from lab_backup.operations.replicate import replicate
from lab_backup.operations.repositories import init_repository
from lab_backup.operations.repositories import open_repository as open_by_url
from lab_backup.operations.restore import restore_image, restore_vm
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.repository.errors import RepositoryError
from lab_backup.repository.pack import PackKind
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.sources.files.compare import METADATA, differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.storage.memory import MemoryStorage
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget
from lab_backup.units import KiB, MiB
from support.engine import CHUNK, copy_of, flip
from support.file_trees import Node, make, trees
from support.stored_trees import (
    LONG_AGO,
    NOW,
    SECOND,
    File,
    MemoryTree,
    contents_of,
    flat,
    publish,
    store_tree,
    stored_tree,
)

FULL = METADATA | {"ctime_ns", "inode"}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository in memory, with the smallest chunks."""
    with new_repository(tmp_path / "cache") as opened:
        yield opened


def new_repository(cache: Path, storage: MemoryStorage | None = None) -> Repository:
    """Return a repository; an empty one, unless `storage` holds one already."""
    place = storage or MemoryStorage()
    if storage is None:
        create_repository(place, passphrase=None, chunk_size=CHUNK, compression="none")
    return open_repository(place, passphrase=None, cache_directory=cache)


def noise(size: int, seed: object = 0) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return random.Random(f"{seed}").randbytes(size)


def many(count: int, size: int = 1000) -> dict[bytes, File]:
    """Return small files of different contents in folders of ten."""
    return {b"%02d/%03d" % (number // 10, number): File([noise(size, number)], inode=number) for number in range(count)}


def expected(tree: MemoryTree) -> dict[bytes, bytes]:
    """Return what a tree holds."""
    return {path: flat(file.data) for path, file in tree.files.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees)
def test_any_tree_comes_back_from_a_repository(tmp_path_factory: pytest.TempPathFactory, tree: Node) -> None:
    """Whatever a folder holds, its backup holds the same, down to change times and inode numbers, and so does what is restored from it."""
    folder = tmp_path_factory.mktemp("tree")
    make(folder / "source", tree)
    with new_repository(folder / "cache") as repository, LocalFileTree(folder / "source") as source:
        with BackupSession(repository, new_backup_id()) as session:
            entry = session.write_file_tree("data", source, None).entry
            publish(session, repository, entry)
        stored = StoredFileTree(Reader(repository), entry)
        assert list(stored.records()) == list(source.records())
        assert list(differences(source, stored, fields=FULL)) == []
        with FileTreeTarget(folder / "copy", devices=True) as target:
            restore_tree(stored, target)
            target.finish()
            assert target.warnings == []
    with LocalFileTree(folder / "source") as source, LocalFileTree(folder / "copy") as copy:
        assert [str(difference) for difference in differences(source, copy)] == []


_paths = st.sampled_from([b"a", b"b", b"d/a", b"d/b", b"d/e/c", b"d.x", b"z"])
_data = st.lists(
    st.integers(1, 70_000) | st.builds(noise, st.sampled_from([1, 700, 8_000, 20_000, 90_000]), st.integers(0, 3)),
    max_size=3,
)
_changes = st.lists(st.tuples(_paths, st.none() | _data), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(_changes, min_size=1, max_size=5), seed=st.integers(0, 3))
def test_any_sequence_of_increments_is_like_full_backups(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[bytes, list[bytes | int] | None]]], seed: int
) -> None:
    """Files come, go and change in any order: every increment holds what a full backup would, and reads what changed and no more."""
    with new_repository(tmp_path_factory.mktemp("cache")) as repository:
        tree = MemoryTree({b"k/%d" % number: File([noise(3000, (seed, number))]) for number in range(8)})
        summary, written = store_tree(repository, tree)
        kept = {summary.backup: expected(tree)}
        clock = NOW
        for step in steps:
            clock += 100 * SECOND
            changed = set()
            for path, data in step:
                if data is None:
                    tree.files.pop(path, None)
                    changed.discard(path)
                else:
                    tree.files[path] = File(data, touched_ns=clock)
                    changed.add(path)
            tree.read.clear()
            summary, written = store_tree(repository, tree, written.entry, began_ns=clock + 50 * SECOND)
            assert set(tree.read) == changed
            kept[summary.backup] = expected(tree)
        for backup, contents in kept.items():
            assert contents_of(stored_tree(repository, backup)) == contents
        assert verify(repository, read_data=True).damage == ()


def test_an_unchanged_tree_costs_nothing(repository: Repository) -> None:
    """A second backup of the same files reads none of them, stores no chunk and no node, and one that reads them all stores none either."""
    tree = MemoryTree({**many(200), b"large": File([noise(1 * MiB)])})
    _, first = store_tree(repository, tree)
    tree.read.clear()
    _, second = store_tree(repository, tree, first.entry)
    assert tree.read == []
    assert second.counts.bytes_stored == 0
    assert (second.entry.catalogue, second.entry.contents) == (first.entry.catalogue, first.entry.contents)
    _, again = store_tree(repository, tree)
    assert len(tree.read) == 201
    assert again.counts.bytes_stored == 0


def test_a_changed_small_file_stores_itself(repository: Repository) -> None:
    """One file of a bundle changes: it is all that is read, its neighbours are taken out of the old bundle, and a part of the catalogue is new."""
    tree = MemoryTree(many(500))
    _, first = store_tree(repository, tree)
    tree.files[b"20/203"] = File([noise(900, "new")], touched_ns=NOW + SECOND)
    tree.read.clear()
    summary, second = store_tree(repository, tree, first.entry)
    assert tree.read == [b"20/203"]
    assert second.counts.bytes_read == 900
    assert second.counts.bytes_new < 900 + 64 * KiB
    assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)


def test_a_bundle_that_is_hardly_used_is_read_again(repository: Repository) -> None:
    """Most files of every bundle go: the next backup but one reads what is left, and the old bundles can be collected."""
    tree = MemoryTree(many(300))
    _, written = store_tree(repository, tree)
    for number, path in enumerate(list(tree.files)):
        if number % 8:
            del tree.files[path]
    tree.read.clear()
    _, written = store_tree(repository, tree, written.entry)
    assert tree.read == []
    _, written = store_tree(repository, tree, written.entry)
    assert set(tree.read) == set(tree.files)
    tree.read.clear()
    summary, written = store_tree(repository, tree, written.entry)
    assert tree.read == []
    assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)


@pytest.mark.parametrize(
    ("change", "is_read"),
    [({}, False), ({"inode": 7}, True), ({"touched_ns": LONG_AGO + 1}, True), ({"data": [bytes(999)]}, True)],
)
def test_what_counts_as_a_change(repository: Repository, change: dict[str, object], *, is_read: bool) -> None:
    """Another inode, time or length each make a file be read, and nothing else does."""
    tree = MemoryTree({b"file": File([noise(1000)])})
    _, first = store_tree(repository, tree)
    for name, value in change.items():
        setattr(tree.files[b"file"], name, value)
    tree.read.clear()
    store_tree(repository, tree, first.entry)
    assert (tree.read == [b"file"]) == is_read


@pytest.mark.parametrize(("before", "is_read"), [(3 * SECOND, False), (2 * SECOND, True), (0, True), (-SECOND, True)])
def test_a_change_within_the_clocks_tick_is_seen(repository: Repository, before: int, *, is_read: bool) -> None:
    """A file whose change time is not well before the last backup began may have changed after it was read, without a trace: it is read again."""
    tree = MemoryTree({b"file": File([noise(1000, "old")], touched_ns=NOW - before)})
    _, first = store_tree(repository, tree, began_ns=NOW)
    tree.files[b"file"].data = [noise(1000, "new")]  # within the same tick: no time tells
    summary, _ = store_tree(repository, tree, first.entry, began_ns=NOW + 100 * SECOND)
    assert (contents_of(stored_tree(repository, summary.backup))[b"file"] == noise(1000, "new")) == is_read


def test_a_second_pass_reads_what_changed_since_the_first(repository: Repository) -> None:
    """Within one backup a first pass is taken for the previous one: the second reads what changed, and alone is published."""
    tree = MemoryTree({**many(100), b"busy": File([noise(500_000, 1)])})
    with BackupSession(repository, new_backup_id()) as session:
        first = session.write_file_tree("data", tree, None, began_ns=NOW)
        tree.files[b"busy"] = File([noise(500_000, 1), noise(10, 2)], touched_ns=NOW + SECOND)
        del tree.files[b"00/000"]
        tree.read.clear()
        second = session.write_file_tree("data", tree, first.entry, began_ns=NOW + 2 * SECOND)
        summary = publish(session, repository, second.entry)
    assert tree.read == [b"busy"]
    assert second.counts.bytes_new < 200_000
    assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)
    assert verify(repository, read_data=True).damage == ()


def test_an_insertion_stores_its_surroundings(repository: Repository) -> None:
    """A few bytes at the front of a large file move all others: a handful of chunks is new."""
    data = noise(4 * MiB)
    tree = MemoryTree({b"file": File([data])})
    _, first = store_tree(repository, tree)
    tree.files[b"file"] = File([b"inserted", data], touched_ns=NOW + SECOND)
    summary, second = store_tree(repository, tree, first.entry)
    assert second.counts.bytes_read == 4 * MiB + 8
    assert second.counts.bytes_stored < 6 * 4 * CHUNK
    assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)


def test_holes_cost_nothing(repository: Repository) -> None:
    """A terabyte of hole around some data is neither read nor stored, and is a hole again."""
    sparse = MemoryTree({b"sparse": File([noise(100), 1 << 20, noise(50_000), 12345])})
    summary, written = store_tree(repository, sparse)
    assert written.counts.bytes_read == 50_100
    assert written.entry.contents.size == 50_100
    stored = stored_tree(repository, summary.backup)
    (content,) = stored.contents(stored.records())
    assert [tuple(extent) for extent in content.extents()] == [
        (0, 100, False),
        (100, 1 << 20, True),
        ((1 << 20) + 100, 50_000, False),
        ((1 << 20) + 50_100, 12345, True),
    ]
    assert contents_of(stored) == expected(sparse)


def test_a_file_of_countless_holes(repository: Repository) -> None:
    """Beyond some thousand holes the rest of a file is stored as data, so that its row stays short."""
    data: list[bytes | int] = [piece for number in range(5000) for piece in (b"%05d" % number, 11)]
    tree = MemoryTree({b"lace": File(data), b"next": File([b"follows"])})
    summary, _ = store_tree(repository, tree)
    assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)


def test_what_cannot_be_read_is_left_out_with_its_links(repository: Repository) -> None:
    """A file that vanishes before it is read is not in the backup, nor is a hard link to it, which is named; all else is."""
    tree = MemoryTree({b"a": File([b"here"]), b"b": File([b"gone"])}, links={b"c": b"b", b"d": b"a"}, unreadable={b"b"})
    summary, written = store_tree(repository, tree)
    assert [record.path for record in stored_tree(repository, summary.backup).records()] == [b"", b"a", b"d"]
    assert [warning.endswith("(1): c") for warning in written.warnings] == [True]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, repository: Repository) -> None:
    """It is stored as long as it was when reading ended, named in a warning, and read again by the next backup."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "cut").write_bytes(noise(3 * MiB))
    (folder / "still").write_bytes(noise(100))
    for name in ("cut", "still"):
        os.utime(folder / name, ns=(0, LONG_AGO))
    read: list[int] = []

    def shrink(count: int) -> None:
        if not read:
            os.truncate(folder / "cut", 2 * MiB + 500_000)
        read.append(count)

    with LocalFileTree(folder) as tree, BackupSession(repository, new_backup_id()) as session:
        written = session.write_file_tree("data", tree, None, advance=shrink)
        summary = publish(session, repository, written.entry)
        assert (
            [warning for warning in tree.warnings if ": cut" in warning and "still" not in warning]
            == tree.warnings
            != []
        )
    stored = stored_tree(repository, summary.backup)
    record = stored.find(b"cut")
    assert record is not None
    assert record.size == 2 * MiB + 500_000
    assert contents_of(stored)[b"cut"] == noise(3 * MiB)[: record.size]
    with LocalFileTree(folder) as tree, BackupSession(repository, new_backup_id()) as session:
        again = session.write_file_tree("data", tree, written.entry, began_ns=time.time_ns() + 10 * SECOND)
        summary = publish(session, repository, again.entry)
        assert list(differences(tree, stored_tree(repository, summary.backup), fields=FULL)) == []


def test_a_part_of_a_tree_without_the_rest(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single files and folders are found and read in any part of a large tree, and what is far from them is not fetched."""
    tree = MemoryTree({b"%d/%04d" % (number % 7, number): File([noise(100, number)]) for number in range(6000)})
    summary, _ = store_tree(repository, tree)
    stored = stored_tree(repository, summary.backup)
    paths = [record.path for record in stored.records()]
    for path in [b"", b"0", b"3", b"6", b"3/1998", b"6/5997", b"nowhere", b"3/20000", b"9"]:
        inside = path + b"/" if path else b""
        assert [record.path for record in stored.below(path)] == [
            other for other in paths if other == path or other.startswith(inside)
        ]
        found = stored.find(path)
        assert (found is not None) == (path in paths)
        assert [record.path for record in stored.children(path)] == [
            other for other in paths if other and other.rpartition(b"/")[0] == path
        ]
    fresh = stored_tree(repository, summary.backup)
    fetched: list[int] = []
    read = repository.storage.read

    def counted(path: str, offset: int = 0, length: int | None = None) -> bytes:
        data = read(path, offset, length)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(repository.storage, "read", counted)
    record = fresh.find(b"3/1998")
    assert record is not None
    contents = fresh.contents([record])
    content = next(contents)
    buffer = bytearray(record.size)
    assert content.read_into(0, memoryview(buffer)) == record.size
    assert buffer == noise(100, 1998)
    whole = stored.entry.size
    assert sum(fetched) < whole / 4


def test_contents_that_nobody_takes(repository: Repository) -> None:
    """A reader that skips files, or stops within one, gets the right content of the next."""
    tree = MemoryTree(
        {
            b"%03d" % number: File([noise(size, number)] if size else [])
            for number, size in enumerate([0, 10, 900_000, 0, 20_000, 5] * 10)
        }
    )
    summary, _ = store_tree(repository, tree)
    stored = stored_tree(repository, summary.backup)
    chooser = random.Random(3)
    for content in stored.contents(stored.records()):
        data = flat(tree.files[content.record.path].data)
        at = 0
        while at < len(data) and chooser.random() < 0.7:
            at = chooser.randrange(at, len(data))
            buffer = bytearray(chooser.randrange(1, 100_000))
            count = content.read_into(at, memoryview(buffer))
            assert buffer[:count] == data[at : at + len(buffer)]
            at += count


class Disordered(MemoryTree):
    """A source that gives `given` instead of what is there."""

    given: list[FileRecord]

    def records(self) -> Iterator[FileRecord]:
        """Return something else."""
        return iter(self.given)


ROOT = FileRecord(path=b"", kind=FileKind.DIRECTORY)


@pytest.mark.parametrize(
    "given",
    [
        [FileRecord(path=b"a", kind=FileKind.FIFO)],
        [ROOT, FileRecord(path=b"b", kind=FileKind.FIFO), FileRecord(path=b"a", kind=FileKind.FIFO)],
        [ROOT, FileRecord(path=b"../a", kind=FileKind.FIFO)],
        [ROOT, FileRecord(path=b"a/b", kind=FileKind.FIFO)],
        [ROOT, FileRecord(path=b"a" * 2 * MiB, kind=FileKind.FIFO)],
    ],
)
def test_a_source_that_gives_no_tree(repository: Repository, given: list[FileRecord]) -> None:
    """Names out of order, outside of the tree, or too long for any reader: the backup fails rather than be unreadable."""
    tree = Disordered({})
    tree.given = given
    with pytest.raises(RepositoryError):
        store_tree(repository, tree)
    assert Backups(repository).all() == []


def test_contents_out_of_turn(repository: Repository) -> None:
    """A source that returns contents in another order than asked for makes the backup fail, and lose no file silently."""

    class Backwards(MemoryTree):
        def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
            return reversed(list(super().contents(records)))

    with pytest.raises(RepositoryError):
        store_tree(repository, Backwards({b"a": File([b"a"]), b"b": File([b"b"])}))


def test_attributes_that_no_file_system_has(repository: Repository) -> None:
    """Names of attributes and values beyond all limits are left out with a warning; the file is there."""
    tree = Disordered({})
    tree.given = [ROOT, FileRecord(path=b"a", kind=FileKind.FIFO, xattrs={b"user.x": bytes(2 * MiB)})]
    summary, written = store_tree(repository, tree)
    record = stored_tree(repository, summary.backup).find(b"a")
    assert record is not None
    assert record.xattrs == {}
    assert [warning.endswith("(1): a") for warning in written.warnings] == [True]


# --- damage ---


def test_damage_is_named_by_file_and_healed(tmp_path: Path) -> None:
    """A flipped bit in a pack of contents: verification names the files, restores of others work, and the next backup reads just those anew."""
    with new_repository(tmp_path / "one") as repository:
        tree = MemoryTree({**many(200), b"large": File([noise(300_000)])})
        summary, written = store_tree(repository, tree)
        storage = copy_of(repository.storage)
        packs = [info for _, info in repository.cache.packs() if info.kind == PackKind.DATA]
    flip(storage, packs[0].path, 5000)
    with new_repository(tmp_path / "two", storage) as repository:
        report = verify(repository, read_data=True)
        (damage,) = report.damage
        named = {touch.partition(":")[2].encode() for touch in damage.touches}
        assert named
        assert named < set(tree.files)
        assert all(touch.startswith(f"{summary.backup}/data:") for touch in damage.touches)
        tree.read.clear()
        healed, _ = store_tree(repository, tree, written.entry)
        assert named <= set(tree.read) < set(tree.files)
        assert contents_of(stored_tree(repository, healed.backup)) == expected(tree)
        assert verify(repository, [healed.backup], read_data=True).damage == ()


def test_a_damaged_list_costs_reading_not_the_backup(tmp_path: Path) -> None:
    """Nothing of the last backup's lists can be read: the next one says so, reads everything, and is whole."""
    with new_repository(tmp_path / "one") as repository:
        tree = MemoryTree(many(50))
        _, written = store_tree(repository, tree)
        storage = copy_of(repository.storage)
        packs = [info for _, info in repository.cache.packs() if info.kind == PackKind.TREE]
    for pack in packs:
        for position in range(130, pack.size - 200, 20):
            flip(storage, pack.path, position)
    with new_repository(tmp_path / "two", storage) as repository:
        assert verify(repository).corrupt > 0
        tree.read.clear()
        summary, again = store_tree(repository, tree, written.entry)
        assert len(tree.read) == 50
        assert [warning.startswith("data: the last backup is damaged") for warning in again.warnings] == [True]
        assert contents_of(stored_tree(repository, summary.backup)) == expected(tree)


# --- what others do with a repository ---


def test_collection_keeps_what_trees_need(repository: Repository) -> None:
    """Backups are deleted one by one, each collection leaves whole what the others share; after the last nothing remains."""
    tree = MemoryTree({**many(200), b"large": File([noise(400_000)])})
    kept = {}
    written = None
    for step in range(4):
        summary, result = store_tree(repository, tree, written, began_ns=NOW + step * 100 * SECOND)
        written = result.entry
        kept[summary.backup] = expected(tree)
        path = b"%02d/%03d" % (step, step * 10 + 3)
        tree.files[path] = File([noise(1500, step)], touched_ns=NOW + step * 100 * SECOND + SECOND)
    for backup in list(kept):
        delete(repository, backup, now=True)
        del kept[backup]
        collect(repository, grace=0, exclusive=True)
        for other, contents in kept.items():
            assert contents_of(stored_tree(repository, other)) == contents
        assert verify(repository, read_data=True).damage == ()
    assert list(repository.storage.list("packs")) == []


@pytest.mark.parametrize("like", [True, False])
def test_copies_are_the_same(tmp_path: Path, *, like: bool) -> None:
    """A copy in a repository with the same ids, or with others, holds the same trees and streams, and a second one adds what is new."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    init_repository(one, passphrase="an honest passphrase", chunk_size=CHUNK)
    with open_by_url(one, passphrase="an honest passphrase", cache_directory=tmp_path / "c1") as source:
        if like:
            init_repository(two, passphrase="another passphrase", like=source)
        else:
            init_repository(two, passphrase="another passphrase", chunk_size=2 * CHUNK)
        with open_by_url(two, passphrase="another passphrase", cache_directory=tmp_path / "c2") as target:
            tree = MemoryTree({**many(100), b"large": File([noise(400_000), 100_000, noise(5)])})
            first, written = store_tree(source, tree)
            assert [item.backup for item in replicate(source, target, read_back=True).copied] == [first.backup]
            tree.files[b"more"] = File([noise(777)], touched_ns=NOW + SECOND)
            second, _ = store_tree(source, tree, written.entry)
            (copied,) = replicate(source, target).copied
            assert copied.bytes_stored < 150_000
            for backup in (first.backup, second.backup):
                here, there = stored_tree(source, backup), stored_tree(target, backup)
                assert list(differences(here, there, fields=FULL)) == []
                assert here.entry.began_ns == there.entry.began_ns
            assert verify(target, read_data=True).damage == ()


def test_kinds_that_a_command_does_not_know(tmp_path: Path, repository: Repository) -> None:
    """Restoring a container's backup as a VM or an image, or exporting it, is refused with what to do instead."""
    summary, _ = store_tree(repository, MemoryTree({b"a": File([b"a"])}))
    backup = Backups(repository).find(summary.backup)
    with pytest.raises(UsageError) as refused:
        restore_vm(repository, backup, connect="qemu:///nowhere")
    assert "restore container" in str(refused.value.hint)
    with pytest.raises(UsageError) as refused:
        restore_image(repository, backup, to=tmp_path / "image")
    assert "restore container" in str(refused.value.hint)
    with pytest.raises(UsageError) as refused:
        export_tar(repository, backup, tmp_path / "archive")
    assert "restore container" in str(refused.value.hint)
    assert not (tmp_path / "image").exists()
    assert not (tmp_path / "archive").exists()


def test_the_kinds_of_records(tmp_path: Path, repository: Repository) -> None:
    """A stored tree gives content for regular files only, whatever is asked for."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    os.link(folder / "file", folder / "link")
    (folder / "symlink").symlink_to("file")
    with LocalFileTree(folder) as tree, BackupSession(repository, new_backup_id()) as session:
        entry = session.write_file_tree("data", tree, None).entry
        session.flush()
        stored = StoredFileTree(Reader(repository), entry)
        assert [record.kind for record in stored.records()] == [
            FileKind.DIRECTORY,
            FileKind.FILE,
            FileKind.HARDLINK,
            FileKind.SYMLINK,
        ]
        assert list(contents_of(stored)) == [b"file"]
