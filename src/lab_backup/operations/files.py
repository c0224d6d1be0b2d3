"""Single files and folders out of a backup that holds trees of files."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.filetree import FileContent, FileKind, FileRecord
from lab_backup.operations.progress import Progress, Silent
from lab_backup.path_text import shown
from lab_backup.repository.backups import Backup
from lab_backup.repository.manifest import TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.sources.podman.saved import ROOTFS, volume_name
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A name in a tree, as text. `target` is what a link leads to; `size` in bytes, `mtime` in seconds since 1970."""

    path: str
    kind: str
    mode: str
    uid: int
    gid: int
    size: int
    mtime: float
    target: str


@dataclass(frozen=True, slots=True)
class FilesResult:
    """What was restored where."""

    backup: str
    source: str
    to: str
    files: int
    bytes_written: int
    duration_seconds: float
    warnings: tuple[str, ...]


def choose_tree(backup: Backup, *, volume: str | None = None, rootfs: bool = False) -> TreeEntry:
    """Return the tree that is meant: that of a volume, the container's own files, or the only one that there is. Raises UsageError, NotFoundError."""
    trees = backup.manifest.trees
    named = ", ".join(tree.name for tree in trees) or "none"
    if not trees:
        raise UsageError(
            f"backup {backup.id[:12]} of {backup.manifest.source.name} holds no trees of files",
            hint="disks are restored with: lab-backup restore vm, or restore image",
        )
    if volume is not None and rootfs:
        raise UsageError("say --volume or --rootfs, not both")
    wanted = ROOTFS if rootfs else None if volume is None else volume_name(volume)
    if wanted is None and len(trees) == 1:
        return trees[0]
    if wanted is None:
        raise UsageError(
            f"the backup holds {len(trees)} trees of files", hint=f"say --volume NAME or --rootfs: {named}"
        )
    found = backup.manifest.file_tree(wanted) or (backup.manifest.file_tree(volume) if volume else None)
    if found is None:
        raise NotFoundError(f"the backup does not hold {volume or 'its own files'}", hint=f"it holds: {named}")
    return found


def list_files(repository: Repository, tree: TreeEntry, path: str = "", *, recursive: bool = False) -> list[ListedFile]:
    """Return what lies in the folder `path` of a tree, or with `recursive` below it; the file alone where it is one. Raises NotFoundError."""
    stored = StoredFileTree(Reader(repository), tree)
    place = as_path(path)
    record = _find(stored, place)
    if record.kind is not FileKind.DIRECTORY:
        return [_listed(record)]
    records = stored.below(place) if recursive else stored.children(place)
    return [_listed(record) for record in records if record.path != place]


def restore_files(
    repository: Repository,
    backup: Backup,
    tree: TreeEntry,
    paths: Sequence[str],
    *,
    to: Path,
    devices: bool = False,
    progress: Progress | None = None,
) -> FilesResult:
    """Restore files and folders of a tree into the new or empty folder `to`, each where it was, with all its metadata.

    Raises NotFoundError for a path that is not in it, TargetExistsError and other TargetErrors, DamagedError; then nothing is left in `to`.
    """
    begun = time.monotonic()
    tell = progress or Silent()
    stored = StoredFileTree(Reader(repository), tree)
    selection = Selection(stored, sorted({as_path(path) for path in paths}, key=_order))
    for path in selection.paths:
        _find(stored, path)
    tell.start(None, f"restoring files of {backup.manifest.source.name}")
    with FileTreeTarget(to, devices=devices) as target:
        restore_tree(selection, target)
        target.finish()
        warnings = tuple(target.warnings)
    return FilesResult(
        backup=backup.id,
        source=backup.manifest.source.name,
        to=str(to),
        files=selection.files,
        bytes_written=selection.bytes,
        duration_seconds=time.monotonic() - begun,
        warnings=warnings,
    )


class Selection:
    """Parts of a stored tree, with the folders that lead to them. Implements FileTree."""

    def __init__(self, tree: StoredFileTree, paths: Sequence[bytes]) -> None:
        """Take `paths` of `tree`, in catalogue order."""
        self._tree = tree
        # What lies in a folder that is wanted as well comes with it.
        self.paths = [path for path in paths if not any(other != path and _inside(path, other) for other in paths)]
        self.files = 0
        self.bytes = 0

    @property
    def warnings(self) -> list[str]:
        """None: what cannot be read raises."""
        return []

    def records(self) -> Iterator[FileRecord]:
        """Return the folders above, and what is wanted, in catalogue order."""
        made: set[bytes] = set()
        for path in self.paths:
            names = path.split(b"/") if path else []
            for depth in range(len(names) if path else 0):
                above = b"/".join(names[:depth])
                record = self._tree.find(above)
                if above not in made and record is not None:
                    made.add(above)
                    yield record
            for record in self._tree.below(path):
                self.files += record.kind is not FileKind.DIRECTORY
                self.bytes += record.size if record.kind is FileKind.FILE else 0
                yield record

    def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
        """Return the contents."""
        return self._tree.contents(records)


def as_path(text: str) -> bytes:
    """Return the path in a tree that a person writes: with or without a slash before it, escapes as `files` shows them not undone."""
    return "/".join(part for part in text.split("/") if part not in {"", "."}).encode("utf-8", "surrogateescape")


def _find(tree: StoredFileTree, path: bytes) -> FileRecord:
    record = tree.find(path)
    if record is None:
        raise NotFoundError(f"there is no {shown(path)} in it", hint="see: lab-backup files")
    return record


def _inside(path: bytes, folder: bytes) -> bool:
    return not folder or path.startswith(folder + b"/")


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


def _listed(record: FileRecord) -> ListedFile:
    return ListedFile(
        path=shown(record.path),
        kind=record.kind.value,
        mode=f"{record.mode:04o}",
        uid=record.uid,
        gid=record.gid,
        size=record.size,
        mtime=record.mtime_ns / 1e9,
        target=shown(record.target) if record.target else "",
    )
