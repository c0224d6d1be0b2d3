"""Files and folders of a backup as a stream: a file as it is, anything else as a tar archive (POSIX.1-2001, pax)."""

import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec

from lab_backup.errors import NotFoundError
from lab_backup.filetree import FileContent, FileKind, FileRecord, FileTree
from lab_backup.operations.export import MANIFEST
from lab_backup.operations.files import Selection, as_path
from lab_backup.operations.qcow2_stream import qcow2_layout, qcow2_stream
from lab_backup.path_text import shown
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.repository.stored_stream import StoredStream
from lab_backup.units import MiB

_PIECE = 1 * MiB
END = bytes(2 * tarfile.BLOCKSIZE)
_TYPES = {
    FileKind.FILE: tarfile.REGTYPE,
    FileKind.DIRECTORY: tarfile.DIRTYPE,
    FileKind.SYMLINK: tarfile.SYMTYPE,
    FileKind.HARDLINK: tarfile.LNKTYPE,
    FileKind.FIFO: tarfile.FIFOTYPE,
}  # no devices and sockets: who unpacks the archive somewhere has no use for them


@dataclass(frozen=True, slots=True)
class Packed:
    """What is sent: a name for it, its size in bytes (None: known at the end only), whether it is an archive, and the bytes."""

    name: str
    size: int | None
    archive: bool
    pieces: Iterator[bytes]


def pack_files(repository: Repository, tree: TreeEntry, paths: Sequence[str]) -> Packed:
    """Return files and folders of a tree as a stream. One regular file comes as it is, with its holes filled. Raises NotFoundError."""
    stored = StoredFileTree(Reader(repository), tree)
    wanted = sorted({as_path(path) for path in paths}, key=lambda path: path.split(b"/") if path else [])
    records = [stored.find(path) for path in wanted]
    for path, record in zip(wanted, records, strict=True):
        if record is None:
            raise NotFoundError(f"there is no {shown(path)} in it", hint="see: lab-backup files")
    first = records[0] if len(records) == 1 else None
    if first is not None and first.kind is FileKind.FILE:
        return Packed(shown(first.path).rpartition("/")[2], first.size, archive=False, pieces=_one(stored, first))
    return Packed("files.tar", None, archive=True, pieces=chain(_members(Selection(stored, wanted)), [END]))


def _one(stored: StoredFileTree, record: FileRecord) -> Iterator[bytes]:
    for content in stored.contents([record]):
        yield from _data(content)


def pack_backup(repository: Repository, backup: Backup) -> Packed:
    """Return a whole backup as a tar archive that needs no Lab Backup to be read: its manifest and settings, disks as qcow2 images, layers, files below the name of their tree."""
    return Packed(f"{backup.id[:12]}.tar", None, archive=True, pieces=_whole(repository, backup))


def _whole(repository: Repository, backup: Backup) -> Iterator[bytes]:
    manifest, reader = backup.manifest, Reader(repository)
    when = int(manifest.when.timestamp())
    yield from _blob(MANIFEST, msgspec.json.format(manifests.encode(manifest)), when)
    for file in manifest.files:
        yield from _blob(file.name, reader.read_file(file), when)
    for disk in manifest.disks:
        layout = qcow2_layout(reader, disk)
        yield _plain_header(f"{disk.name}.qcow2", layout.file_size, when)
        for part in qcow2_stream(reader, disk, layout):
            yield bytes(part)
        yield bytes(-layout.file_size % tarfile.BLOCKSIZE)
    for stream in manifest.streams:
        yield _plain_header(stream.name, stream.size, when)
        for piece in StoredStream(reader, stream.stream).read():
            yield bytes(piece.data)
        yield bytes(-stream.size % tarfile.BLOCKSIZE)
    for tree in manifest.trees:
        yield from _members(StoredFileTree(reader, tree), tree.name.encode() + b"/")
    yield END


def _blob(name: str, data: bytes, when: int) -> Iterator[bytes]:
    yield _plain_header(name, len(data), when)
    yield data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _plain_header(name: str, size: int, when: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


def _members(tree: FileTree, prefix: bytes = b"") -> Iterator[bytes]:
    waiting: deque[FileRecord] = deque()

    def files() -> Iterator[FileRecord]:
        for record in tree.records():
            waiting.append(record)
            if record.kind is FileKind.FILE:
                yield record

    for content in tree.contents(files()):
        while waiting:
            record = waiting.popleft()
            if record.path == content.record.path:
                break
            yield _other(record, prefix)
        yield _header(content.record, prefix)
        size = 0
        for piece in _data(content):
            size += len(piece)
            yield piece
        yield bytes(-size % tarfile.BLOCKSIZE)
    for record in waiting:
        yield _other(record, prefix)


def _other(record: FileRecord, prefix: bytes) -> bytes:
    """Return the header of what has no content. A file without one cannot be sent as if it were empty."""
    if record.kind is FileKind.FILE:
        raise DamagedError(f"the content of {shown(record.path)} is not in the backup", hint="see: lab-backup verify")
    return _header(record, prefix)


def _header(record: FileRecord, prefix: bytes) -> bytes:
    """Return the header of a member; nothing for the root, and for what an archive does not hold."""
    kind = _TYPES.get(record.kind)
    if kind is None or not record.path:
        return b""
    info = tarfile.TarInfo((prefix + record.path).decode("utf-8", "surrogateescape"))
    info.type = kind
    info.mode, info.uid, info.gid = record.mode, record.uid, record.gid
    info.mtime = record.mtime_ns // 10**9
    info.size = record.size if record.kind is FileKind.FILE else 0
    inner = prefix if record.kind is FileKind.HARDLINK else b""
    info.linkname = (inner + record.target).decode("utf-8", "surrogateescape")
    info.pax_headers = {"mtime": f"{record.mtime_ns // 10**9}.{record.mtime_ns % 10**9:09}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _data(content: FileContent) -> Iterator[bytes]:
    """Return the content, exactly as long as the record says: a damaged one raises, and is never filled up."""
    left = content.record.size
    for extent in content.extents():
        for offset in range(extent.offset, extent.end, _PIECE):
            length = min(_PIECE, extent.end - offset, left)
            piece = bytearray(length)
            if not extent.zero and content.read_into(offset, memoryview(piece)) != length:
                raise _short(content.record)
            left -= length
            yield bytes(piece)
    if left:
        raise _short(content.record)


def _short(record: FileRecord) -> DamagedError:
    return DamagedError(f"the content of {shown(record.path)} ends too early", hint="see: lab-backup verify")
