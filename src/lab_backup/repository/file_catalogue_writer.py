"""The catalogue of a tree of files being written: rows into chunks, chunks into a stream."""

from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from lab_backup.path_text import shown
from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.errors import DamagedError, RepositoryError
from lab_backup.repository.file_rows import MAX_ROW, Position, Row, encode_chunk, encode_row, ends_chunk
from lab_backup.repository.stream_tree import Link, StreamBuilder, StreamRef
from lab_backup.repository.stream_writer import ChunkThreads, Stored


class _Chunk(NamedTuple):
    future: Future[Stored]
    length: int
    weight: int


class CatalogueWriter:
    """Puts the rows of one tree together. For one thread, within `threads.running`."""

    def __init__(self, store: ChunkStore, threads: ChunkThreads, counts: Counts) -> None:
        """Store chunks by `threads`; count in `counts`."""
        self._threads = threads
        self._builder = StreamBuilder(lambda node: store.node(node, counts))
        self._position = Position()
        self._rows: list[bytes] = []
        self._size = 0
        self._weight = 0
        self._path = b""
        self._line: deque[_Chunk] = deque()
        self.names = 0
        self.stripped: list[bytes] = []  # whose attributes are not stored

    def add(self, row: Row) -> None:
        """Append a row; one that is longer than any reader takes loses its attributes. Raises RepositoryError where no reader would take it."""
        try:
            self._position.pass_by(row)
        except DamagedError as error:
            raise RepositoryError(
                f"this tree of files cannot be stored, as its source gives it: {error}", hint="report this as a bug"
            ) from error
        data = encode_row(row)
        if len(data) > MAX_ROW and row.xattrs:
            self.stripped.append(row.path)
            data = encode_row(msgspec.structs.replace(row, xattrs={}))
        if len(data) > MAX_ROW:
            raise RepositoryError(
                f"{shown(row.path)[:100]}... in this tree of files has too long a name to be stored",
                hint="remove it, or leave the tree out",
            )
        if self._rows and ends_chunk(self._path, len(self._rows), self._size, len(data)):
            self._close()
        self._rows.append(data)
        self._size += len(data)
        self._weight += row.stored
        self._path = row.path
        self.names += 1

    def _close(self) -> None:
        chunk = encode_chunk(self._rows)
        self._line.append(_Chunk(self._threads.submit([memoryview(chunk)]), len(chunk), self._weight))
        self._rows, self._size, self._weight = [], 0, 0
        while self._line and self._line[0].future.done():
            self._take()

    def _take(self) -> None:
        future, length, weight = self._line.popleft()
        self._builder.add(Link(self._threads.result(future)[0], 0, length, weight))

    def finish(self) -> StreamRef:
        """Return the stream, after the last row."""
        if self._rows:
            self._close()
        while self._line:
            self._take()
        return self._builder.finish()
