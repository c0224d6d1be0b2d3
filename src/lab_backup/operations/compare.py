"""What differs between two backups: names in trees of files, and bytes of disks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lab_backup.errors import UsageError
from lab_backup.filetree import FileKind, FileRecord
from lab_backup.path_text import shown
from lab_backup.repository.backups import Backup
from lab_backup.repository.file_rows import order
from lab_backup.repository.manifest import DiskEntry, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.repository.tree_difference import differences

MOST = 1000  # names that are told of one tree


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A name that is `added`, `removed` or `changed`, with its size in bytes before and after."""

    path: str
    change: str
    size_before: int | None
    size_after: int | None


@dataclass(frozen=True, slots=True)
class TreeComparison:
    """A tree of files: how many names differ, and the first of them."""

    name: str
    added: int
    removed: int
    changed: int
    files: tuple[ChangedFile, ...]


@dataclass(frozen=True, slots=True)
class DiskComparison:
    """A disk: its size in bytes before and after (None: it is not there), and how many bytes lie in chunks that differ."""

    name: str
    size_before: int | None
    size_after: int | None
    bytes_changed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two backups of one kind, `before` and `after`."""

    before: str
    after: str
    disks: tuple[DiskComparison, ...]
    trees: tuple[TreeComparison, ...]
    settings_changed: tuple[str, ...]


def compare(repository: Repository, before: Backup, after: Backup) -> Comparison:
    """Return what differs; only what differs is read of disks. Raises UsageError for backups of different kinds, DamagedError."""
    if before.manifest.source.kind != after.manifest.source.kind:
        raise UsageError(
            f"a backup of a {before.manifest.source.kind} and one of a {after.manifest.source.kind} have nothing to compare",
            hint="choose two of one source",
        )
    reader = Reader(repository)
    old, new = before.manifest, after.manifest
    old_disks, new_disks = {disk.name: disk for disk in old.disks}, {disk.name: disk for disk in new.disks}
    old_trees, new_trees = {tree.name: tree for tree in old.trees}, {tree.name: tree for tree in new.trees}
    old_files = {file.name: reader.read_file(file) for file in old.files}
    new_files = {file.name: reader.read_file(file) for file in new.files}
    return Comparison(
        before=before.id,
        after=after.id,
        disks=tuple(
            _disk(reader, name, old_disks.get(name), new_disks.get(name)) for name in sorted(old_disks | new_disks)
        ),
        trees=tuple(
            _tree(reader, name, old_trees.get(name), new_trees.get(name)) for name in sorted(old_trees | new_trees)
        ),
        settings_changed=tuple(
            name for name in sorted(old_files | new_files) if old_files.get(name) != new_files.get(name)
        ),
    )


def _disk(reader: Reader, name: str, old: DiskEntry | None, new: DiskEntry | None) -> DiskComparison:
    if new is None:
        changed = 0 if old is None else old.size
    else:
        found = differences(reader.tree(new.tree), None if old is None else reader.tree(old.tree))
        changed = sum(difference.length for difference in found if difference.final)
    return DiskComparison(name, None if old is None else old.size, None if new is None else new.size, changed)


def _tree(reader: Reader, name: str, old: TreeEntry | None, new: TreeEntry | None) -> TreeComparison:
    counts = {"added": 0, "removed": 0, "changed": 0}
    told: list[ChangedFile] = []
    for left, right in _paired(_records(reader, old), _records(reader, new)):
        either = right or left
        change = "added" if left is None else "removed" if right is None else "changed"
        if either is None or (change == "changed" and _plain(left) == _plain(right)):
            continue
        counts[change] += 1
        if len(told) < MOST:
            told.append(ChangedFile(shown(either.path), change, _size(left), _size(right)))
    return TreeComparison(name, counts["added"], counts["removed"], counts["changed"], tuple(told))


def _records(reader: Reader, entry: TreeEntry | None) -> Iterator[FileRecord]:
    return iter(()) if entry is None else islice(StoredFileTree(reader, entry).records(), 1, None)  # without the root


def _paired(
    old: Iterator[FileRecord], new: Iterator[FileRecord]
) -> Iterator[tuple[FileRecord | None, FileRecord | None]]:
    """Yield the records of each path; both are in catalogue order."""
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        first = order(left.path) if left is not None else None
        second = order(right.path) if right is not None else None
        if second is None or (first is not None and first < second):
            yield left, None
            left = next(old, None)
        elif first is None or second < first:
            yield None, right
            right = next(new, None)
        else:
            yield left, right
            left, right = next(old, None), next(new, None)


def _plain(record: FileRecord | None) -> tuple[object, ...] | None:
    """Return what a person calls the same: not where it lies, nor when its metadata was last touched."""
    if record is None:
        return None
    return (
        record.kind,
        record.mode,
        record.uid,
        record.gid,
        record.mtime_ns,
        record.size,
        record.target,
        record.xattrs,
    )


def _size(record: FileRecord | None) -> int | None:
    return record.size if record is not None and record.kind is FileKind.FILE else None
