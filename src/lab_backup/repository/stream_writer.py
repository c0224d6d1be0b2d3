"""Turns a sequence of bytes of unknown length into chunks cut by their content, and their list.

One thread reads and cuts, a few hash, compress and encrypt, block by block; the list is put together in order.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.chunking import Chunking, Cutter, chunking_for, chunking_seed
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.manifest import ChunkLengths, StreamEntry
from lab_backup.repository.repository import Repository
from lab_backup.repository.stream_tree import Link, StreamBuilder


class ByteSource(Protocol):
    """Bytes from front to back."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the beginning of `buffer`, which is never empty, and return how much; 0 only at the end (io.RawIOBase)."""
        ...


class Stored(NamedTuple):
    """What became of a block's chunks."""

    ids: list[bytes]
    counts: Counts
    used_packs: set[int]


class ChunkThreads:
    """Threads that store chunks of one writer, with a bound on what they have to do."""

    def __init__(self, store: ChunkStore, counts: Counts, threads: int) -> None:
        """Store in `store`, and count in `counts`, on so many threads. Use it within `running`."""
        self._store = store
        self._counts = counts
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(3 * threads)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the threads."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="chunk") as pool:
            self._pool = pool
            try:
                yield
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def submit(self, chunks: list[memoryview], done: Callable[[], None] = lambda: None) -> "Future[Stored]":
        """Store chunks; `done` is called when their memory may be used again. Waits while there is too much to do."""
        if self._pool is None:
            raise AssertionError
        self._room.acquire()
        try:
            return self._pool.submit(self._run, chunks, done)
        except BaseException:
            self._room.release()
            raise

    def _run(self, chunks: list[memoryview], done: Callable[[], None]) -> Stored:
        try:
            counts, used = Counts(), set[int]()
            ids = [identity for identity in self._store.chunks(chunks, counts, used) if identity is not None]
            return Stored(ids, counts, used)
        finally:
            self._room.release()
            done()

    def result(self, future: "Future[Stored]") -> list[bytes]:
        """Wait for chunks and return their ids; raises what storing them raised. For the thread that owns the store."""
        stored = future.result()
        self._counts.add(stored.counts)
        self._store.used_packs |= stored.used_packs
        return stored.ids


class StreamWriter:
    """Writes streams into one backup. Use from one thread; it has its own."""

    def __init__(self, repository: Repository, store: ChunkStore, *, threads: int | None = None) -> None:
        """Store in `store` on `threads` threads (by default one a core and one more)."""
        self._store = store
        self._threads = threads or default_threads()
        self._chunking: Chunking = chunking_for(repository.config.chunk_size)
        self._seed = chunking_seed(repository.keys)

    def write(
        self, name: str, source: ByteSource, *, advance: Callable[[int], None], pulse: Callable[[], None]
    ) -> tuple[StreamEntry, Counts]:
        """Store all that `source` gives as `name`; return what the manifest is to say, and what happened.

        `advance` is told the bytes that were read, `pulse` is called now and then. Raises what reading and storing raise; what was
        stored until then is garbage.
        """
        counts = Counts()
        threads = ChunkThreads(self._store, counts, self._threads)
        builder = StreamBuilder(lambda node: self._store.node(node, counts))
        window: deque[tuple[Future[Stored], list[int]]] = deque()

        def collect() -> None:
            future, lengths = window.popleft()
            for identity, length in zip(threads.result(future), lengths, strict=True):
                builder.add(Link(identity, 0, length))

        def emit(block: bytearray, view: memoryview, lengths: list[int]) -> None:
            window.append((threads.submit(pieces(view, lengths), lambda: cutter.buffers.give(block)), lengths))
            while window and window[0][0].done():
                collect()
            pulse()

        cutter = Cutter(self._chunking, self._seed, emit)
        with threads.running():
            while True:
                with cutter.space() as space:
                    count = source.readinto(space)
                if not count:
                    break
                counts.bytes_read += count
                cutter.add(count)
                advance(count)
            cutter.end()
            while window:
                collect()
        stream = builder.finish()
        entry = StreamEntry(
            name=name,
            size=stream.size,
            root=None if stream.root is None else stream.root.hex(),
            chunks=ChunkLengths(**self._chunking._asdict()),
            bytes_read=counts.bytes_read,
            bytes_stored=counts.bytes_stored,
        )
        return entry, counts


def pieces(view: memoryview, lengths: list[int]) -> list[memoryview]:
    """Cut a view into parts of these lengths."""
    at = 0
    parts = []
    for length in lengths:
        parts.append(view[at : at + length])
        at += length
    return parts
