"""Trees of files in memory, backed up and read back in one line; what a source that changes looks like, without waiting for clocks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lab_backup.extent import Extent, merge
from lab_backup.filetree import FileContent, FileKind, FileRecord
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.repository.backups import Backups
from lab_backup.repository.file_tree_writer import WrittenTree
from lab_backup.repository.manifest import VERSION, Manifest, SourceInfo, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.repository.stored_files import StoredFileTree

SECOND = 10**9
LONG_AGO = 1_000_000 * SECOND
NOW = 2_000_000 * SECOND  # when backups begin, unless a test says otherwise


@dataclass
class File:
    """A file of pieces of data and holes (int). `touched_ns` is its change time."""

    data: list[bytes | int]
    touched_ns: int = LONG_AGO
    inode: int = 1


def flat(data: Iterable[bytes | int]) -> bytes:
    """Return the content that a reader sees."""
    return b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in data)


class _Content:
    def __init__(self, record: FileRecord, file: File) -> None:
        self._record = record
        self._file = file
        self._flat = flat(file.data)

    @property
    def record(self) -> FileRecord:
        return self._record

    def extents(self) -> Iterator[Extent]:
        def runs() -> Iterator[Extent]:
            at = 0
            for piece in self._file.data:
                length = piece if isinstance(piece, int) else len(piece)
                yield Extent(at, length, zero=isinstance(piece, int))
                at += length

        return merge(runs())

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self._flat[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


@dataclass
class MemoryTree:
    """A FileTree of `files` by path; folders are made as needed. `read` lists the files whose content was asked for."""

    files: dict[bytes, File]
    links: dict[bytes, bytes] = field(default_factory=dict)
    unreadable: set[bytes] = field(default_factory=set)
    read: list[bytes] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """None."""
        return []

    def records(self) -> Iterator[FileRecord]:
        """Return all names in catalogue order."""
        folders = {b""}
        for path in (*self.files, *self.links):
            parts = path.split(b"/")
            folders.update(b"/".join(parts[:depth]) for depth in range(1, len(parts)))
        for path in sorted({*folders, *self.files, *self.links}, key=lambda path: path.split(b"/") if path else []):
            if path in self.files:
                yield self._record(path)
            elif path in self.links:
                yield FileRecord(path=path, kind=FileKind.HARDLINK, target=self.links[path])
            else:
                yield FileRecord(path=path, kind=FileKind.DIRECTORY, mode=0o755)

    def _record(self, path: bytes) -> FileRecord:
        file = self.files[path]
        return FileRecord(
            path=path,
            kind=FileKind.FILE,
            mode=0o644,
            size=len(flat(file.data)),
            mtime_ns=file.touched_ns,
            ctime_ns=file.touched_ns,
            inode=file.inode,
        )

    def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
        """Return the contents of files."""
        for record in records:
            if record.path not in self.unreadable:
                self.read.append(record.path)
                yield _Content(self._record(record.path), self.files[record.path])


def store_tree(
    repository: Repository,
    tree: MemoryTree,
    previous: TreeEntry | None = None,
    *,
    began_ns: int = NOW,
    backup_id: str | None = None,
    name: str = "web",
) -> tuple[BackupSummary, WrittenTree]:
    """Back a tree up as the volume `data` of a container."""
    with BackupSession(repository, backup_id or new_backup_id()) as session:
        written = session.write_file_tree("data", tree, previous, began_ns=began_ns)
        return publish(session, repository, written.entry, name=name), written


def publish(session: BackupSession, repository: Repository, *trees: TreeEntry, name: str = "web") -> BackupSummary:
    """Make a backup of what was written."""
    manifest = Manifest(
        version=VERSION,
        backup=session.backup_id,
        repository=repository.config.id,
        time="2026-01-01T00:00:00Z",
        source=SourceInfo(kind="container", id=f"id-of-{name}", name=name),
        kind="full",
        consistency="fuzzy",
        trees=trees,
    )
    return summary(session.publish(manifest))


def stored_tree(repository: Repository, backup_id: str) -> StoredFileTree:
    """Return the volume of a backup."""
    entry = Backups(repository).find(backup_id).manifest.file_tree("data")
    assert entry is not None
    return StoredFileTree(Reader(repository), entry)


def contents_of(tree: StoredFileTree) -> dict[bytes, bytes]:
    """Return the content of every file, read as a restore does."""
    found = {}
    for content in tree.contents(tree.records()):
        data = bytearray()
        for extent in content.extents():
            piece = bytearray(extent.length)
            if not extent.zero:
                assert content.read_into(extent.offset, memoryview(piece)) == extent.length
            data += piece
        found[content.record.path] = bytes(data)
    return found
