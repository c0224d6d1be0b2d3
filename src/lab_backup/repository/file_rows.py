"""The catalogue of a tree of files: one row for each name, in catalogue order, in chunks that hold whole rows.

Chunks are MessagePack, so that they stay readable when this program is long gone. A row says how many bytes of the tree's contents are its
file's; where they begin is the sum of those before it, so a file that is added changes no other row. Fields in `docs/format/streams.md`.
"""

import zlib
from collections.abc import Iterator
from typing import Annotated

import msgspec

from lab_backup.filetree import FileKind, FileRecord
from lab_backup.path_text import shown
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import MAX_CATALOGUE_CHUNK, MAX_DISK
from lab_backup.units import KiB, MiB

MAX_ROW = 1 * MiB  # names and extended attributes of any file system are far smaller
MAX_ROWS = 4096  # in a chunk, so that a reader knows how much memory its rows take
MAX_RUNS = 4096  # of a file; behind so many holes the rest of it is stored as data
# A chunk ends after a row whose path says so, so that a changed row changes no other chunk: after 64 KiB on average.
MIN_CHUNK = 16 * KiB
MAX_CHUNK = 256 * KiB
CUT_ONE_IN = 384  # rows, which take about 128 bytes each

_ARRAY = 0xDD  # MessagePack: an array with a length of 32 bits follows

Natural = Annotated[int, msgspec.Meta(ge=0)]


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A FileRecord, and for a file the lengths of its runs: data, hole, data, hole ..."""

    path: bytes
    kind: FileKind
    mode: Natural
    uid: Natural
    gid: Natural
    mtime_ns: int
    ctime_ns: int
    inode: Natural
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK)]
    runs: Annotated[tuple[Natural, ...], msgspec.Meta(max_length=MAX_RUNS + 2)] = ()
    target: bytes = b""
    major: Natural = 0
    minor: Natural = 0
    xattrs: dict[bytes, bytes] = {}

    @property
    def stored(self) -> int:
        """How many bytes of the tree's contents are this file's."""
        runs = self.runs
        return runs[0] if len(runs) == 1 else sum(runs[::2])

    @property
    def record(self) -> FileRecord:
        """The row as everybody else knows it."""
        return FileRecord(
            path=self.path,
            kind=self.kind,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            mtime_ns=self.mtime_ns,
            size=self.size,
            target=self.target,
            major=self.major,
            minor=self.minor,
            xattrs=self.xattrs,
            ctime_ns=self.ctime_ns,
            inode=self.inode,
        )


def row_of(record: FileRecord, runs: tuple[int, ...] = ()) -> Row:
    """Return the row of a record; a file is as long as its `runs`."""
    return Row(
        path=record.path,
        kind=record.kind,
        mode=record.mode,
        uid=record.uid,
        gid=record.gid,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.ctime_ns,
        inode=record.inode,
        size=sum(runs) if record.kind is FileKind.FILE else record.size,
        runs=runs,
        target=record.target,
        major=record.major,
        minor=record.minor,
        xattrs=dict(sorted(record.xattrs.items())),
    )


def order(path: bytes) -> bytes:
    """Return what compares as catalogue order does: names hold no NUL, and a folder comes before all that is in it."""
    return path.replace(b"/", b"\0")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Annotated[list[Row], msgspec.Meta(min_length=1, max_length=MAX_ROWS)])


def encode_row(row: Row) -> bytes:
    """Return the bytes of a row; they may be more than MAX_ROW."""
    return _encoder.encode(row)


def encode_chunk(rows: list[bytes]) -> bytes:
    """Return the chunk that holds these rows."""
    return bytes([_ARRAY]) + len(rows).to_bytes(4, "big") + b"".join(rows)


def ends_chunk(path: bytes, rows: int, size: int, following: int) -> bool:
    """Whether a chunk of so many rows and bytes ends with the row of `path`, the next one having `following` bytes."""
    if rows >= MAX_ROWS or size + following > MAX_CHUNK:
        return True
    return size >= MIN_CHUNK and zlib.crc32(path) % CUT_ONE_IN == 0


def decode_chunk(data: bytes | bytearray | memoryview, weight: int, after: "Position") -> list[Row]:
    """Return the rows of a chunk of that weight, which follow what `after` has seen. Raises DamagedError.

    Every row is checked: no reader is led out of the tree, to a name twice, or to contents of another length.
    """
    if len(data) > MAX_CATALOGUE_CHUNK:
        raise _forged("a part of it is longer than any may be")
    try:
        rows: list[Row] = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _forged(f"it is not valid: {error}") from error
    for row in rows:
        after.pass_by(row)
    if sum([row.stored for row in rows]) != weight:
        raise _forged("a part of it does not have the contents that its place asks for")
    return rows


class Position:
    """Where in a catalogue a reader is; it takes only rows that may follow."""

    def __init__(self) -> None:
        """Begin before the first row."""
        self._last: bytes | None = None
        # The folders that lead here, the root first; empty where they are not known, as the reader began in the middle.
        self._open: list[bytes] = []

    @classmethod
    def in_the_middle(cls) -> "Position":
        """Begin anywhere: what is above is not known."""
        position = cls()
        position._last = b""
        return position

    def pass_by(self, row: Row) -> None:
        """Go on to `row`. Raises DamagedError where it cannot be there."""
        path = row.path
        key = order(path)
        if self._last is None:
            if path or row.kind is not FileKind.DIRECTORY:
                raise _forged("it does not begin with the folder itself")
            self._open = [b""]
        elif not _is_name(path):
            raise _forged(f"{shown(path)} is no name in a tree")
        elif key <= self._last:
            raise _forged(f"{shown(path)} is not in its place, or there twice")
        elif self._open:
            folder = path.rpartition(b"/")[0]
            # What lies in a folder lies together: who left it does not come back.
            while self._open and self._open[-1] != folder:
                self._open.pop()
            if not self._open:
                raise _forged(f"{shown(path)} lies in something that is no folder")
            if row.kind is FileKind.DIRECTORY:
                self._open.append(path)
        self._last = key
        _check_kind(row, key)


def _is_name(path: bytes) -> bool:
    """Whether this is the path of something below the root."""
    framed = b"/" + path + b"/"
    return b"//" not in framed and b"/./" not in framed and b"/../" not in framed and b"\0" not in path


def _check_kind(row: Row, key: bytes) -> None:
    if row.kind is FileKind.FILE:
        if sum(row.runs) != row.size:
            raise _forged(f"{shown(row.path)} has another length than its parts")
    elif row.runs:
        raise _forged(f"{shown(row.path)} is no file, but has a content")
    if row.kind is FileKind.HARDLINK and (order(row.target) >= key or not _is_name(row.target)):
        raise _forged(f"{shown(row.path)} is a link to what did not come before it")


def _forged(why: str) -> DamagedError:
    return DamagedError(f"the catalogue of a tree of files is wrong: {why}", hint="the backup was forged or damaged")


def data_runs(row: Row) -> Iterator[tuple[int, int]]:
    """Yield (offset in the file, length) of each run of data."""
    at = 0
    for number, length in enumerate(row.runs):
        if number % 2 == 0 and length:
            yield at, length
        at += length
