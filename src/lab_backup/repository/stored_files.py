"""A tree of files in a backup: listed from any place on, and read back whole, in parts, or one file alone."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from lab_backup.blocks import Buffer
from lab_backup.extent import Extent, merge
from lab_backup.filetree import FileContent, FileKind, FileRecord
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.file_rows import Position, Row, data_runs, decode_chunk, order
from lab_backup.repository.manifest import TreeEntry
from lab_backup.repository.reader import Piece, Reader
from lab_backup.repository.stored_stream import STEP, Span, StoredStream
from lab_backup.repository.stream_tree import Placed

PATIENCE = 8  # chunks of a catalogue that are read one by one, before it is worth reading ahead
FAR = 4096  # rows that are read through before it is worth searching: about eight chunks
AHEAD = 4096  # files that are looked up before their contents are asked for


class StoredRow(NamedTuple):
    """A row, and where its content begins in the tree's contents."""

    row: Row
    start: int

    @property
    def stop(self) -> int:
        """Where its content ends."""
        return self.start + self.row.stored


class Catalogue:
    """The rows of a stored tree. Thread-safe. Raises DamagedError wherever it is not what it should be."""

    def __init__(self, reader: Reader, entry: TreeEntry) -> None:
        """Look at the catalogue of `entry`."""
        self._stream = StoredStream(reader, entry.catalogue_stream)
        self._keys: dict[int, bytes] = {}  # of the first row of a chunk, by its offset: searches meet again
        self._lock = threading.Lock()

    def rows(self, key: bytes = b"") -> Iterator[StoredRow]:
        """Yield the rows from `key` on, in catalogue order; little of what is before is read. `order` makes keys of paths."""
        start = self._search(key) if key else 0
        position = Position() if start == 0 else Position.in_the_middle()
        for place, data in self._chunks(start):
            rows = _decoded(place, data, position)
            if place.offset == start and key:
                rows = [stored for stored in rows if order(stored.row.path) >= key]
            yield from rows

    def row(self, path: bytes) -> StoredRow | None:
        """Return the row of `path`, or None."""
        first = next(self.rows(order(path)), None)
        return first if first is not None and first.row.path == path else None

    def _chunks(self, start: int) -> Iterator[tuple[Placed, Buffer]]:
        places = self._stream.list.pieces(start)
        for place in islice(places, PATIENCE):
            yield place, self._stream.piece(place)
            start = place.offset + place.link.length
        if start < self._stream.stream.size:
            with closing(self._stream.read([Span(start, self._stream.stream.size)])) as pieces:
                for place, piece in zip(places, pieces, strict=True):
                    yield place, piece.data

    def _search(self, key: bytes) -> int:
        """Return the offset of the last chunk that begins at or before `key`."""
        low, high = 0, self._stream.stream.size
        found = 0
        while low < high:
            place = self._stream.list.piece((low + high) // 2)
            if self._begins(place) <= key:
                found, low = place.offset, place.offset + place.link.length
            else:
                high = place.offset
        return found

    def _begins(self, place: Placed) -> bytes:
        with self._lock:
            known = self._keys.get(place.offset)
        if known is None:
            position = Position() if place.offset == 0 else Position.in_the_middle()
            known = order(_decoded(place, self._stream.piece(place), position)[0].row.path)
            with self._lock:
                self._keys[place.offset] = known
        return known


def _decoded(place: Placed, data: Buffer, position: Position) -> list[StoredRow]:
    start = place.before
    rows = []
    for row in decode_chunk(data, place.link.weight, position):
        rows.append(StoredRow(row, start))
        start += row.stored
    return rows


class StoredFileTree:
    """A FileTree over a tree in a repository. Thread-safe, but each iterator is for one thread."""

    def __init__(self, reader: Reader, entry: TreeEntry) -> None:
        """Look at `entry` of a manifest of the reader's repository."""
        self.entry = entry
        self.catalogue = Catalogue(reader, entry)
        self._contents = StoredStream(reader, entry.contents_stream)

    @property
    def warnings(self) -> list[str]:
        """Nothing: what cannot be read raises DamagedError."""
        return []

    def records(self) -> Iterator[FileRecord]:
        """Return all names in catalogue order, the root first. Raises DamagedError."""
        for row, _ in self.catalogue.rows():
            yield row.record

    def find(self, path: bytes) -> FileRecord | None:
        """Return the record of `path`, or None. Reads little else. Raises DamagedError."""
        found = self.catalogue.row(path)
        return None if found is None else found.row.record

    def below(self, path: bytes) -> Iterator[FileRecord]:
        """Return the record of `path`, and of all that is in it, in catalogue order; nothing where there is no such path. Reads little else."""
        inside = path + b"/" if path else b""
        for row, _ in self.catalogue.rows(order(path)):
            if row.path != path and not row.path.startswith(inside):
                return
            yield row.record

    def children(self, path: bytes) -> Iterator[FileRecord]:
        """Return the records of what lies directly in the folder `path`. Reads little else."""
        inside = order(path) + b"\0" if path else b""
        at: bytes | None = inside
        while at is not None:
            passed, rows, at = 0, self.catalogue.rows(at), None
            for row, _ in rows:
                key = order(row.path)
                if key and not key.startswith(inside):
                    return
                name, deeper, _ = key[len(inside) :].partition(b"\0")
                if not deeper and key:
                    passed = 0
                    yield row.record
                    continue
                passed += 1
                if passed > FAR:
                    at = inside + name + b"\1"  # behind all that is in it
                    break

    def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
        """Return the contents of the regular files of `records`, which are in catalogue order; the next are on their way meanwhile.

        A record that is not of this tree is left out. Records are taken somewhat ahead. Raises DamagedError.
        """
        waiting: deque[StoredRow] = deque()
        with closing(self._contents.read(_spans(self._located(records), waiting))) as pieces:
            feed = _Feed(pieces)
            while True:
                while not waiting and feed.go_on():
                    pass
                if not waiting:
                    return
                yield StoredFileContent(waiting.popleft(), feed)

    def _located(self, records: Iterable[FileRecord]) -> Iterator[StoredRow]:
        """Find the rows of files, going on from each to the next without reading what lies far between."""
        rows: Iterator[StoredRow] = iter(())
        here: StoredRow | None = None
        for record in records:
            if record.kind is not FileKind.FILE:
                continue
            wanted = order(record.path)
            passed = FAR if here is None else 0
            while here is None or order(here.row.path) < wanted:
                if passed >= FAR:
                    rows, passed = self.catalogue.rows(wanted), 0
                here = next(rows, None)
                passed += 1
                if here is None:
                    return
            if here.row.path == record.path and here.row.kind is FileKind.FILE:
                yield here


def _spans(located: Iterable[StoredRow], waiting: deque[StoredRow]) -> Iterator[Span]:
    """Yield the parts of the contents that hold these files, neighbours joined, and put each file into `waiting`."""
    held = Span(0, 0)
    for files, stored in enumerate(located, 1):
        waiting.append(stored)
        if stored.start != held.stop:
            yield held
            held = Span(stored.start, stored.start)
        held = Span(held.start, stored.stop)
        if held.stop - held.start >= STEP or files % AHEAD == 0:
            yield held
            # An empty one bids the stream to hand out what it has.
            held = Span(held.stop, held.stop)
            if files % AHEAD == 0:
                yield held
    yield held


class _Feed:
    """The contents of the files that were asked for, one after the other; what nobody took is passed over."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._piece = Piece(0, b"")

    def go_on(self) -> bool:
        """Let go of the piece at hand and take the next one; return whether there was one."""
        piece = next(self._pieces, None)
        self._piece = piece or Piece(0, b"")
        return piece is not None

    def take(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from `start` of the contents, which never goes back."""
        done = 0
        while done < len(buffer):
            at = start + done
            offset, data = self._piece
            if not offset <= at < offset + len(data):
                if not self.go_on():
                    raise DamagedError(
                        "the contents of a tree of files end before its catalogue does", hint="the backup was forged"
                    )
                continue
            part = memoryview(data)[at - offset : at - offset + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)


class StoredFileContent:
    """The content of one file of a stored tree. Implements FileContent."""

    def __init__(self, stored: StoredRow, feed: _Feed) -> None:
        self._stored = stored
        self._feed = feed
        self._runs = data_runs(stored.row)
        self._run = next(self._runs, None)
        self._before = 0  # bytes of data before that run

    @property
    def record(self) -> FileRecord:
        """The file as it was backed up."""
        return self._stored.row.record

    def extents(self) -> Iterator[Extent]:
        """Return the whole file as data and holes."""

        def runs() -> Iterator[Extent]:
            at = 0
            for number, length in enumerate(self._stored.row.runs):
                yield Extent(at, length, zero=number % 2 == 1)
                at += length

        return merge(runs())

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`, which never goes back; holes are zeroes. Returns fewer bytes only where the file ends. Raises DamagedError."""
        length = max(0, min(len(buffer), self._stored.row.size - offset))
        at, end = offset, offset + length
        while self._run is not None and self._run[0] < end:
            start, stop = max(at, self._run[0]), min(end, self._run[0] + self._run[1])
            if start < stop:
                buffer[at - offset : start - offset] = bytes(start - at)
                self._feed.take(
                    self._stored.start + self._before + start - self._run[0], buffer[start - offset : stop - offset]
                )
                at = stop
            if self._run[0] + self._run[1] > end:
                break
            self._before += self._run[1]
            self._run = next(self._runs, None)
        buffer[at - offset : length] = bytes(end - at)
        return length


def paths_within(reader: Reader, entry: TreeEntry, spans: list[Span]) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the span, path) of each file whose content touches one of `spans` of a tree's contents, which ascend. Raises DamagedError."""
    first = 0
    for row, start in Catalogue(reader, entry).rows():
        stop = start + row.stored
        while first < len(spans) and spans[first].stop <= start:
            first += 1
        if first == len(spans):
            return
        for number in range(first, len(spans)):
            if spans[number].start >= stop:
                break
            if spans[number].stop > start and stop > start:
                yield number, row.path
