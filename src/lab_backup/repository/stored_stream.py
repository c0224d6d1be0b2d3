"""A stored stream read back: any part of it, in order, while the next parts are on their way."""

import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from lab_backup.blocks import Buffer
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.errors import ChunkCorruptError, ChunkMissingError
from lab_backup.repository.pack import PackKind
from lab_backup.repository.reader import Piece, Reader
from lab_backup.repository.stream_tree import Placed, StreamReader, StreamRef
from lab_backup.units import MiB

if TYPE_CHECKING:
    from lab_backup.repository.cache import Location

STEP = 4 * MiB  # of the stream, the work of one thread at a time
MAX_PIECES = 4096  # in a step: small files that were changed one by one make small pieces
HELD = 8 * MiB  # of chunks that may be asked for again soon, since only a part of them was wanted


class Span(NamedTuple):
    """The bytes from `start` to `stop` of a stream."""

    start: int
    stop: int


class StoredStream:
    """A stream in a repository. Thread-safe. Every byte is checked against its id."""

    def __init__(self, reader: Reader, stream: StreamRef) -> None:
        """Look at `stream`, as a manifest of the reader's repository names it."""
        self._reader = reader
        self.stream = stream
        self.list = StreamReader(stream, reader.node)
        self._held: OrderedDict[bytes, Buffer] = OrderedDict()
        self._held_size = 0
        self._lock = threading.Lock()

    def read(self, spans: Iterable[Span] | None = None, *, threads: int | None = None) -> Generator[Piece, None, None]:
        """Yield the bytes of `spans` (ascending, without overlaps; by default all), in order and gapless within each.

        Spans are taken somewhat before they are yielded. At an empty one everything before it is yielded without waiting for more, and then
        perhaps an empty piece. Raises DamagedError.
        """
        chosen = [Span(0, self.stream.size)] if spans is None else spans
        count = threads or default_threads()
        with ThreadPoolExecutor(count, thread_name_prefix="read") as pool:
            window: deque[Future[list[Piece]]] = deque()
            try:
                for step in self._steps(chosen):
                    window.append(pool.submit(self._fetch, step))
                    if len(window) > count + 1:
                        yield from window.popleft().result()
                while window:
                    yield from window.popleft().result()
            finally:
                for future in window:
                    future.cancel()

    def _steps(self, spans: Iterable[Span]) -> Iterator[list[Placed]]:
        """Gather the pieces of the spans, cut at their ends, into steps."""
        step: list[Placed] = []
        size = 0
        for span in spans:
            if span.start == span.stop:
                yield step
                step, size = [], 0
            for offset, before, link in self.list.pieces(span.start, span.stop):
                skipped = max(0, span.start - offset)
                length = min(offset + link.length, span.stop) - offset - skipped
                part = link._replace(skip=link.skip + skipped, length=length)
                step.append(Placed(offset + skipped, before, part))
                size += length
                if size >= STEP or len(step) >= MAX_PIECES:
                    yield step
                    step, size = [], 0
        if step:
            yield step

    def _fetch(self, step: list[Placed]) -> list[Piece]:
        chunks: dict[bytes, Buffer] = {}
        wanted: dict[bytes, Location] = {}
        partial: set[bytes] = set()
        with self._lock:
            for place in step:
                held = self._held.get(place.link.id)
                if held is not None:
                    self._held.move_to_end(place.link.id)
                    chunks[place.link.id] = held
        for _, _, link in step:
            if link.id in chunks or link.id in wanted:
                continue
            location = self._reader.find(link.id)
            if location is None:
                raise ChunkMissingError(
                    f"chunk {link.id.hex()[:16]} is nowhere in the repository", hint="run: lab-backup verify"
                )
            wanted[link.id] = location
            if location.entry.raw > link.length:
                partial.add(link.id)
        for blob in self._reader.read_anywhere(wanted, PackKind.DATA):
            chunks[blob.entry.id] = blob.data
        with self._lock:
            for identity in partial:
                self._hold(identity, chunks[identity])
        return [Piece(place.offset, _part(chunks[place.link.id], place)) for place in step] or [Piece(0, b"")]

    def piece(self, place: Placed) -> Buffer:
        """Return the bytes of one piece of the list. Raises DamagedError."""
        return self._fetch([place])[0].data

    def _hold(self, identity: bytes, data: Buffer) -> None:
        if identity not in self._held:
            self._held[identity] = data
            self._held_size += len(data)
        while self._held_size > HELD and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._held_size -= len(dropped)


def _part(chunk: Buffer, place: Placed) -> memoryview:
    link = place.link
    if link.skip + link.length > len(chunk):
        raise ChunkCorruptError(
            f"chunk {link.id.hex()[:16]} has {len(chunk)} bytes where {link.skip + link.length} belong"
        )
    return memoryview(chunk)[link.skip : link.skip + link.length]


class PieceSource:
    """A whole stream as a file to read from. Implements ByteSource."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        """Give what `pieces`, gapless from the beginning, hold."""
        self._pieces = pieces
        self._left = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; return how much, 0 at the end. Raises DamagedError."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece.data)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
