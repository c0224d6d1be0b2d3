"""Turns a disk, or what changed on it, into chunks and a chunk tree: the engine's hot path.

The unit of work is a leaf, 64 consecutive chunks. A few threads take leaves in order; each reads its changed chunks, hashes, looks up, and stores
what is new. Every long step (reading, BLAKE3, zstd, AES) runs without the interpreter's lock, so plain threads fill the cores.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from lab_backup.blocks import BlockReader
from lab_backup.extent import Extent
from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.repository import Repository
from lab_backup.repository.tree import FAN_OUT, Child, TreeBuilder, TreeReader, TreeRef, encode_node
from lab_backup.units import MiB

# One request to a source: measured best on NBD, and small enough to stay in the processor's cache while it is worked on.
READ_SIZE = 1 * MiB
MAX_THREADS = 8


def default_threads() -> int:
    """Return how many threads compress: one a core, and one more to read meanwhile."""
    return min(len(os.sched_getaffinity(0)) + 1, MAX_THREADS)


class Leaf(NamedTuple):
    """Work on the leaf `number`: runs of chunks to read, as (first chunk, end chunk, zero), numbered within the disk."""

    number: int
    runs: list[tuple[int, int, bool]]


def chunk_runs(extents: Iterable[Extent], chunk_size: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Turn sorted extents into runs of whole chunks (first, end, zero), ascending, without overlaps.

    Every chunk that an extent touches is in a run; it is zero only where zero extents cover all of it.
    """
    held = -1  # a chunk that was touched, but whose end no extent has reached yet
    zero_to = 0  # how far zero extents cover it without a gap; -1 once they do not
    for extent in extents:
        at, end = extent.offset, min(extent.end, size)
        while at < end:
            chunk = at // chunk_size
            chunk_start, chunk_end = chunk * chunk_size, min((chunk + 1) * chunk_size, size)
            if chunk != held:
                if held >= 0:
                    yield held, held + 1, False
                    held = -1
                if at == chunk_start and end >= chunk_end:
                    stop = end // chunk_size if end < size else -(-size // chunk_size)
                    yield chunk, stop, extent.zero
                    at = min(stop * chunk_size, size)
                    continue
                held, zero_to = chunk, chunk_start
            stop = min(end, chunk_end)
            zero_to = stop if extent.zero and zero_to == at else -1
            at = stop
            if stop == chunk_end:
                yield chunk, chunk + 1, zero_to == chunk_end
                held = -1
    if held >= 0:
        yield held, held + 1, False


def _joined(runs: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """Join neighbouring runs of one kind, so that they are read together."""
    held: tuple[int, int, bool] | None = None
    for first, end, zero in runs:
        if held is not None and held[1] == first and held[2] == zero:
            held = (held[0], end, zero)
            continue
        if held is not None:
            yield held
        held = (first, end, zero)
    if held is not None:
        yield held


def leaves(runs: Iterable[tuple[int, int, bool]]) -> Iterator[Leaf]:
    """Cut runs of chunks at the borders of leaves and gather what belongs to one leaf."""

    def cut() -> Iterator[tuple[int, tuple[int, int, bool]]]:
        for first, end, zero in _joined(runs):
            at = first
            while at < end:
                index = at // FAN_OUT
                stop = min(end, (index + 1) * FAN_OUT)
                yield index, (at, stop, zero)
                at = stop

    for index, group in groupby(cut(), key=lambda item: item[0]):
        yield Leaf(index, [run for _, run in group])


class DiskWriter:
    """Writes disks into one backup. Use from one thread; it has its own."""

    def __init__(self, repository: Repository, store: ChunkStore, *, threads: int | None = None) -> None:
        """Compress on `threads` threads (by default one a core and one more)."""
        self._repository = repository
        self._store = store
        self._threads = threads or default_threads()
        self._zero_ids: dict[int, bytes] = {}

    def write(
        self,
        reader: BlockReader,
        changed: Iterable[Extent],
        *,
        parent: TreeReader | None,
        advance: Callable[[int], None],
        pulse: Callable[[], None],
    ) -> tuple[TreeRef, Counts]:
        """Store `changed` of the disk over `parent` (None: what is not in `changed` is zero); return its tree.

        `advance` is told the bytes that were dealt with, `pulse` is called now and then between leaves. Memory is a
        buffer a thread and a few leaves in flight. Raises DamagedError where the parent cannot be read, and what reading
        and storing raise; what was stored until then is garbage.
        """
        chunk_size = parent.tree.chunk_size if parent else self._repository.config.chunk_size
        tree = TreeRef(reader.size, chunk_size, None)
        counts = Counts()
        builder = TreeBuilder(tree, parent, lambda node: self._store.node(node, counts))
        work = leaves(chunk_runs(changed, chunk_size, reader.size))
        gate = threading.BoundedSemaphore(max(1, reader.readers))
        job = _LeafJob(self._store, reader, tree, parent, gate, self._is_zero)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="chunk") as pool:
            window: deque[Future[_LeafDone]] = deque()
            try:
                for leaf in work:
                    window.append(pool.submit(job.run, leaf))
                    if len(window) > 3 * self._threads:
                        self._collect(window.popleft().result(), builder, counts, advance)
                    pulse()
                while window:
                    self._collect(window.popleft().result(), builder, counts, advance)
            finally:
                for future in window:
                    future.cancel()
        if tree.levels == 1 and tree.chunks == 0:
            return tree, counts
        return tree._replace(root=builder.finish()), counts

    def _collect(self, done: "_LeafDone", builder: TreeBuilder, counts: Counts, advance: Callable[[int], None]) -> None:
        counts.add(done.counts)
        self._store.used_packs |= done.used_packs
        identity = None if done.node is None else self._store.node(done.node, counts)
        builder.add(done.number, identity)
        advance(done.bytes)

    def _is_zero(self, identity: bytes, length: int) -> bool:
        """Whether this is the id of `length` zero bytes: comparing ids finds zero chunks at no cost."""
        if length not in self._zero_ids:
            self._zero_ids[length] = self._repository.chunk_id(bytes(length))
        return identity == self._zero_ids[length]


class _LeafDone(NamedTuple):
    number: int
    node: bytes | None
    bytes: int
    counts: Counts
    used_packs: set[int]


class _LeafJob:
    """What every leaf of a disk needs; `run` is called by many threads."""

    def __init__(
        self,
        store: ChunkStore,
        reader: BlockReader,
        tree: TreeRef,
        parent: TreeReader | None,
        gate: threading.BoundedSemaphore,
        is_zero: Callable[[bytes, int], bool],
    ) -> None:
        self._store = store
        self._reader = reader
        self._tree = tree
        self._parent = parent
        self._gate = gate
        self._is_zero = is_zero
        self._local = threading.local()

    def run(self, leaf: Leaf) -> _LeafDone:
        chunk_size, size = self._tree.chunk_size, self._tree.size
        counts = Counts()
        used: set[int] = set()
        children: list[Child] = self._parent.children(0, leaf.number) if self._parent else [None] * FAN_OUT
        base = leaf.number * FAN_OUT
        dealt = 0
        per_read = max(1, READ_SIZE // chunk_size)
        for first, end, zero in leaf.runs:
            dealt += min(end * chunk_size, size) - first * chunk_size
            if zero:
                children[first - base : end - base] = [None] * (end - first)
                continue
            for start in range(first, end, per_read):
                stop = min(start + per_read, end)
                children[start - base : stop - base] = self._read(start, stop, counts, used)
        node = encode_node(0, children) if any(child is not None for child in children) else None
        return _LeafDone(leaf.number, node, dealt, counts, used)

    def _buffer(self) -> memoryview:
        view: memoryview | None = getattr(self._local, "buffer", None)
        if view is None:
            view = self._local.buffer = memoryview(bytearray(max(READ_SIZE, self._tree.chunk_size)))
        return view

    def _read(self, start: int, stop: int, counts: Counts, used: set[int]) -> list[Child]:
        chunk_size = self._tree.chunk_size
        offset = start * chunk_size
        length = min(stop * chunk_size, self._tree.size) - offset
        buffer = self._buffer()[:length]
        with self._gate:
            self._reader.read_into(offset, buffer)
        counts.bytes_read += length
        chunks = [buffer[at : at + chunk_size] for at in range(0, length, chunk_size)]
        return self._store.chunks(chunks, counts, used, is_zero=self._is_zero)
