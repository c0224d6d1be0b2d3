"""Manifests: what was backed up, and where its parts are. The publication of a manifest is a backup's commit point.

JSON inside a sealed object, so that a manifest stays readable when this program is long gone. Fields in `docs/format/manifests.md`.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from lab_backup.repository.config import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE
from lab_backup.repository.errors import DamagedError, NewerVersionError
from lab_backup.repository.stream_tree import StreamRef, check_empty
from lab_backup.repository.tree import TreeRef
from lab_backup.repository.untrusted_json import Moment, parse
from lab_backup.units import MiB, TiB

VERSION = 1  # of a backup of disks and files
STREAMS_VERSION = 2  # of one with streams or trees of files, so that older programs do not take it for less than it is
PREFIX = "manifests"
MAX_DISK = 1024 * TiB  # far above QEMU's limits; a forged size must not make us loop for ever

Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}\\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]
# Also a file name in restores and exports: no separator, no leading dot or dash.
Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK)]
Count = Annotated[int, msgspec.Meta(ge=0)]
ChunkSize = Annotated[int, msgspec.Meta(ge=MIN_CHUNK_SIZE, le=MAX_CHUNK_SIZE)]
PieceSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNK_SIZE)]
MAX_CATALOGUE_CHUNK = 4 * MiB  # of a tree's catalogue: what a reader decodes at once


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Something stored as a chunk tree. Sizes in bytes; `root` is null where all of it is zero."""

    name: Name
    size: Size
    chunk_size: ChunkSize
    root: Hex64 | None

    @property
    def tree(self) -> TreeRef:
        """The stored tree."""
        return TreeRef(self.size, self.chunk_size, _root(self.root))

    @property
    def lists(self) -> tuple[TreeRef, ...]:
        """The chunk lists that it consists of."""
        return (self.tree,)


class FileEntry(Entry, frozen=True, kw_only=True):
    """A small file that belongs to the source, such as `domain.xml`."""


class DiskEntry(Entry, frozen=True, kw_only=True):
    """A disk. `kind` says what was read, not what can be restored: that is always the whole disk."""

    format: str
    identity: str
    checkpoint: str | None = None
    kind: Literal["full", "incremental"]
    reason: str | None = None
    bytes_read: Count = 0
    bytes_stored: Count = 0


class ChunkLengths(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream was cut, in bytes. A reader takes no piece longer than `maximum`."""

    minimum: PieceSize
    average: PieceSize
    maximum: PieceSize


class StreamEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence of bytes cut by its content, such as a layer of an image. `root` is null where it is empty."""

    name: Name
    size: Size
    root: Hex64 | None
    chunks: ChunkLengths
    bytes_read: Count = 0
    bytes_stored: Count = 0

    @property
    def stream(self) -> StreamRef:
        """The stored stream."""
        return StreamRef(self.size, 0, _root(self.root), self.chunks.maximum)

    @property
    def lists(self) -> tuple[StreamRef, ...]:
        """The chunk lists that it consists of."""
        return (self.stream,)


class StreamRoot(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two streams of a tree of files."""

    size: Size
    root: Hex64 | None


class TreeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A tree of files: its catalogue, and the contents of its files one after the other, without their holes.

    `began_ns` is when its reading began, by the clock that gives its files their times, in nanoseconds since 1970.
    `names` and `bytes_total` (holes included) are for people. `kind` says what was read.
    """

    name: Name
    catalogue: StreamRoot
    contents: StreamRoot
    chunks: ChunkLengths
    began_ns: int
    kind: Literal["full", "incremental"]
    reason: str | None = None
    names: Count = 0
    files_read: Count = 0
    bytes_total: Count = 0
    bytes_read: Count = 0
    bytes_stored: Count = 0

    @property
    def catalogue_stream(self) -> StreamRef:
        """The stored catalogue; its weight is the bytes of the contents."""
        return StreamRef(self.catalogue.size, self.contents.size, _root(self.catalogue.root), MAX_CATALOGUE_CHUNK)

    @property
    def contents_stream(self) -> StreamRef:
        """The stored contents."""
        return StreamRef(self.contents.size, 0, _root(self.contents.root), self.chunks.maximum)

    @property
    def lists(self) -> tuple[StreamRef, ...]:
        """The chunk lists that it consists of."""
        return (self.catalogue_stream, self.contents_stream)

    @property
    def size(self) -> int:
        """Bytes of all that is stored of it, before deduplication and compression."""
        return self.catalogue.size + self.contents.size


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was backed up: `kind` and `id` identify it for ever, the rest is for people."""

    kind: str
    id: str
    name: str
    host: str = ""


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of all disks, bytes read from the source, bytes sent to the storage; chunks that were new or known already."""

    bytes_total: Count = 0
    bytes_read: Count = 0
    bytes_stored: Count = 0
    chunks_new: Count = 0
    chunks_reused: Count = 0
    duration_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    bytes_new: Count | None = None  # of the new chunks, before compression; null in older manifests
    bytes_new_stored: Count | None = None  # what they take, compressed
    entropy: Annotated[float, msgspec.Meta(ge=0, le=8)] | None = None  # of a sample of them, in bits a byte
    anomaly: bool = False  # far more change than usual, and as good as random


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One backup, immutable. `time` is its point in time, ISO 8601 in UTC.

    `looked` is when, by the storage's clock, its writer last saw that nothing it relies on is condemned.
    """

    version: int
    backup: Hex32
    repository: Hex32
    time: str
    source: SourceInfo
    kind: Literal["full", "incremental"]
    consistency: str
    parent: Hex32 | None = None
    disks: tuple[DiskEntry, ...] = ()
    files: tuple[FileEntry, ...] = ()
    streams: tuple[StreamEntry, ...] = ()
    trees: tuple[TreeEntry, ...] = ()
    statistics: Statistics = Statistics()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tool: str = ""
    looked: Moment | None = None

    @property
    def when(self) -> datetime:
        """`time` as a value."""
        return datetime.fromisoformat(self.time)

    @property
    def entries(self) -> tuple[DiskEntry | FileEntry | StreamEntry | TreeEntry, ...]:
        """Everything the backup refers to: whoever copies, checks or collects looks at these and at nothing else."""
        return (*self.disks, *self.files, *self.streams, *self.trees)

    @property
    def streamed(self) -> tuple[StreamEntry | TreeEntry, ...]:
        """Those of its entries that were cut by their content."""
        return (*self.streams, *self.trees)

    @property
    def lists(self) -> tuple[TreeRef | StreamRef, ...]:
        """The chunk lists of all its entries."""
        return tuple(chunk_list for entry in self.entries for chunk_list in entry.lists)

    @property
    def needed_version(self) -> int:
        """The least version of a program that can read it."""
        return STREAMS_VERSION if self.streamed else VERSION

    def disk(self, name: str) -> DiskEntry | None:
        """Return the disk of that name, or None."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def file(self, name: str) -> FileEntry | None:
        """Return the file of that name, or None."""
        return next((file for file in self.files if file.name == name), None)

    def stream(self, name: str) -> StreamEntry | None:
        """Return the stream of that name, or None."""
        return next((stream for stream in self.streams if stream.name == name), None)

    def file_tree(self, name: str) -> TreeEntry | None:
        """Return the tree of files of that name, or None."""
        return next((tree for tree in self.trees if tree.name == name), None)


def path(backup_id: str) -> str:
    """Return the object path of a backup's manifest."""
    return f"{PREFIX}/{backup_id}"


def id_of(object_path: str) -> str | None:
    """Return the id of the backup whose manifest is the object `object_path`, None where it is no manifest."""
    prefix, _, backup_id = object_path.rpartition("/")
    return backup_id if prefix == PREFIX and is_id(backup_id) else None


def _root(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON; one that needs version 1 only is just what programs of that version wrote."""
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    for name in ("streams", "trees"):
        if not fields[name]:
            del fields[name]
    return msgspec.json.encode(fields)


def decode(payload: bytes, backup_id: str, repository_id: str) -> Manifest:
    """Return the manifest, with every field checked: it is input like any other. Raises DamagedError."""
    what = f"the manifest of backup {backup_id}"
    if parse(payload, _Version, what).version > STREAMS_VERSION:
        raise NewerVersionError(
            f"backup {backup_id} was written by a newer version of Lab Backup", hint="update this one"
        )
    manifest = parse(payload, Manifest, what)
    try:
        # Without an offset it could not be compared with others.
        valid = manifest.when.utcoffset() is not None and manifest.when.astimezone(UTC) is not None
    except (ValueError, OverflowError):
        valid = False
    if not valid:
        raise DamagedError(f"{what} has an impossible time")
    names = [entry.name for entry in manifest.entries]
    if manifest.backup != backup_id or manifest.repository != repository_id or len(set(names)) != len(names):
        raise DamagedError(
            f"the manifest of backup {backup_id} contradicts itself", hint="it was forged or copied from elsewhere"
        )
    lengths = [entry.chunks for entry in manifest.streamed]
    if any(entry.chunk_size & (entry.chunk_size - 1) for entry in (*manifest.disks, *manifest.files)) or any(
        not chunks.minimum <= chunks.average <= chunks.maximum for chunks in lengths
    ):
        raise DamagedError(f"the manifest of backup {backup_id} has an impossible chunk size")
    if manifest.version < manifest.needed_version:
        raise DamagedError(
            f"the manifest of backup {backup_id} holds what there is not in its version", hint="it was forged"
        )
    try:
        for entry in manifest.streamed:
            for stream in entry.lists:
                check_empty(stream)
    except DamagedError as error:
        raise DamagedError(f"the manifest of backup {backup_id} contradicts itself: {error}") from error
    return manifest


class _Version(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=1)]


def checksum(payload: bytes) -> str:
    """Return the SHA-256 of a manifest's JSON, hexadecimal: what identifies a backup's content to the outside."""
    return hashlib.sha256(payload).hexdigest()


def is_id(text: str) -> bool:
    """Whether `text` is a whole backup id."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None
