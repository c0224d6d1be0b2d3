"""Reads chunks, tree nodes and whole disks out of a repository; every byte is checked against its id before anyone sees it."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, TypeVar

from lab_backup.blocks import BlockWriter, Buffer
from lab_backup.direct_io import aligned_buffer
from lab_backup.extent import Extent, merge
from lab_backup.repository.cache import Location
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.errors import ChunkCorruptError, ChunkMissingError, DamagedError
from lab_backup.repository.manifest import DiskEntry, FileEntry
from lab_backup.repository.manifest import Entry as ManifestEntry
from lab_backup.repository.pack import ENTRY, Entry, PackInfo, PackKind
from lab_backup.repository.pack_blocks import PackBlocks
from lab_backup.repository.pack_table import read_table
from lab_backup.repository.ranges import ranges
from lab_backup.repository.repository import Repository
from lab_backup.repository.tree import FAN_OUT, MAX_NODE, TreeReader, TreeRef, check_end, decode_node
from lab_backup.storage.base import ObjectNotFoundError
from lab_backup.units import KiB, MiB

SLICE = 8 * MiB  # of a disk, the unit of work of a restore: a leaf of the default chunk size
GROUP = 4  # slices that are asked for together: who wrote them had several threads, so their chunks lie mixed
BLOCK = 2 * MiB  # of a pack; read whole where a group needs an eighth of it, since the next group needs the rest
BLOCKS_KEPT = 12
NODE_BLOCK = 256 * KiB  # more than a hundred nodes of 64 children
NODE_BLOCKS_KEPT = 32
RELOAD_AGAIN = 600.0  # seconds; what is missing after the index was loaded anew is hardly there a moment later
MAX_FILE = 64 * MiB  # configuration files are held in memory


R = TypeVar("R")


class Blob(NamedTuple):
    """A checked blob: where it was, its content, and the same compressed, as it may be stored elsewhere."""

    entry: Entry
    data: Buffer
    packed: Buffer


class Piece(NamedTuple):
    """A chunk at its place on the disk."""

    offset: int
    data: Buffer


class _Slice(NamedTuple):
    """Slots `first` to `stop` of a leaf."""

    leaf: int
    identity: bytes
    first: int
    stop: int

    def span(self, tree: TreeRef) -> tuple[int, int]:
        """Return the bytes of the disk that it covers: start and end."""
        base = self.leaf * FAN_OUT
        return min((base + self.first) * tree.chunk_size, tree.size), min(
            (base + self.stop) * tree.chunk_size, tree.size
        )


class _Plan(NamedTuple):
    """The chunks of a slice: where on the disk each belongs, where it is stored, and how often the index had been loaded when we looked."""

    part: _Slice
    places: dict[bytes, list[int]]
    wanted: dict[bytes, Location]
    seen: int


class _Stored(NamedTuple):
    """A chunk as it is stored, on its way: the parts of a pack that hold it, and where in the first of them it begins."""

    parts: list[Future[bytes]]
    start: int


class Reader:
    """Reads from one repository. Thread-safe."""

    def __init__(self, repository: Repository) -> None:
        """Read from `repository`."""
        self._repository = repository
        self._reload_lock = threading.Lock()
        self.bad_places: dict[
            Location, DamagedError
        ] = {}  # where a blob should have been, before it was found elsewhere or not at all
        self._reloads = 0
        self._reload_after = 0.0
        self._nodes = PackBlocks(repository.storage, size=NODE_BLOCK, kept=NODE_BLOCKS_KEPT)
        # Large chunks make several slices of one leaf.
        self._leaf = lru_cache(maxsize=64)(lambda identity: decode_node(self.node(identity), 0))

    # --- blobs ---

    def find(self, blob_id: bytes) -> Location | None:
        """Return the best place where the blob is, or None where it is nowhere.

        Before it says no, the whole index is loaded anew, unless it was lately.
        """
        seen = self._reloads
        location = self._repository.cache.locate(blob_id)
        if location is None and self._reload(seen):
            location = self._repository.cache.locate(blob_id)
        return location

    def _locate(self, blob_id: bytes, what: str) -> Location:
        location = self.find(blob_id)
        if location is None:
            raise ChunkMissingError(
                f"{what} {blob_id.hex()[:16]} is nowhere in the repository", hint="run: lab-backup verify"
            )
        return location

    def _reload(self, seen: int) -> bool:
        """Load the whole index anew, now and then: what is missing may have moved to another pack meanwhile.

        Returns whether it was loaded since there had been `seen` loads, by this thread or another: then it is worth looking again.
        """
        with self._reload_lock:
            if self._reloads == seen and time.monotonic() >= self._reload_after:
                self._repository.reload()
                self._reloads += 1
                self._reload_after = time.monotonic() + RELOAD_AGAIN
            return self._reloads > seen

    def _decrypt(self, number: int, entry: Entry, stored: Buffer, kind: PackKind) -> Blob:
        """Return a checked blob."""
        repository = self._repository
        info, cipher = repository.cipher(number)
        where = f"at {entry.offset} in pack {info.id.hex()}"
        if info.kind != kind:
            raise ChunkCorruptError(f"blob {entry.id.hex()[:16]} {where} is of the wrong kind")
        if len(stored) != entry.stored:
            raise ChunkCorruptError(f"pack {info.id.hex()} is cut off", hint="run: lab-backup verify")
        try:
            data, packed = cipher.decrypt(stored, entry)
        except ChunkCorruptError as error:
            raise ChunkCorruptError(
                f"blob {entry.id.hex()[:16]} {where}: {error}", hint="run: lab-backup verify"
            ) from error
        identity = repository.chunk_id(data) if kind == PackKind.DATA else repository.node_id(bytes(data))
        if identity != entry.id:
            raise ChunkCorruptError(
                f"blob {entry.id.hex()[:16]} {where} does not match its id", hint="run: lab-backup verify"
            )
        return Blob(entry, data, packed)

    def read_blobs(self, locations: Iterable[Location], kind: PackKind) -> Iterator[Blob]:
        """Yield each blob, checked, in the order of packs and places, neighbours by one request.

        Raises DamagedError; storage errors pass through.
        """
        for number, entries in ranges(locations):
            yield from self.decrypt_range(number, entries, self.fetch_range(number, entries), kind)

    def fetch_range(self, number: int, entries: list[Entry]) -> bytes:
        """Return the bytes of a pack from the first to the last of `entries`, as they are stored. Raises ChunkMissingError."""
        info, _ = self._repository.cipher(number)
        start = entries[0].offset
        length = entries[-1].offset + entries[-1].stored - start
        try:
            return self._repository.storage.read(info.path, start, length)
        except ObjectNotFoundError as error:
            raise ChunkMissingError(f"pack {info.id.hex()} is gone", hint="run: lab-backup verify") from error

    def decrypt_range(self, number: int, entries: list[Entry], data: bytes, kind: PackKind) -> Iterator[Blob]:
        """Yield the blobs in what `fetch_range` returned, checked, in order. Raises DamagedError."""
        view = memoryview(data)
        for entry in entries:
            at = entry.offset - entries[0].offset
            yield self._decrypt(number, entry, view[at : at + entry.stored], kind)

    def read_anywhere(self, wanted: dict[bytes, Location], kind: PackKind) -> Iterator[Blob]:
        """Read blobs; those that cannot be read where they are said to be, from wherever else they can."""
        left = dict(wanted)
        seen = self._reloads
        with suppress(DamagedError):
            for blob in self.read_blobs(left.values(), kind):
                left.pop(blob.entry.id)
                yield blob
        for blob_id in left:
            yield self._read_elsewhere(blob_id, kind, seen)

    def _read_elsewhere(self, blob_id: bytes, kind: PackKind, seen: int) -> Blob:
        """Return a blob from the first of its places where it is whole, or raise what was wrong with them."""
        failure = DamagedError(f"blob {blob_id.hex()[:16]} is gone", hint="run: lab-backup verify")
        tried: set[Location] = set()
        for _ in range(2):
            for location in self._repository.cache.places(blob_id):
                if location not in tried:
                    tried.add(location)
                    try:
                        return next(self.read_blobs([location], kind))
                    except DamagedError as error:
                        failure = self.bad_places[location] = error
            if not self._reload(seen):
                break
        raise failure

    def node(self, blob_id: bytes) -> bytes:
        """Return the checked bytes of a tree node. Raises DamagedError."""
        location = self._locate(blob_id, "tree node")
        if location.entry.raw > MAX_NODE:
            raise ChunkCorruptError(f"tree node {blob_id.hex()[:16]} is larger than a node can be")
        info, entry = self._repository.cache.pack(location.pack), location.entry
        seen = self._reloads
        try:
            stored = self._nodes.read(info.path, entry.offset, entry.stored)
            return bytes(self._decrypt(location.pack, entry, stored, PackKind.TREE).data)
        except (DamagedError, ObjectNotFoundError):
            self._nodes.forget(info.path, entry.offset, entry.stored)
            return bytes(self._read_elsewhere(blob_id, PackKind.TREE, seen).data)

    def tree(self, tree: TreeRef) -> TreeReader:
        """Return a look into a stored tree."""
        return TreeReader(tree, self.node)

    def pack_table(self, info: PackInfo) -> list[Entry]:
        """Return the table of contents that the pack itself holds. Raises DamagedError, ObjectNotFoundError."""
        repository = self._repository
        found = read_table(repository.storage, info.id, info.size, repository.id, repository.wrapping_key)
        if found.info != info:
            raise DamagedError(f"the header of pack {info.id.hex()} is not what the index says")
        return [Entry(*fields) for fields in ENTRY.iter_unpack(found.table)]

    # --- disks ---

    def leaf_chunks(self, tree: TreeRef, leaf: int, identity: bytes) -> list[tuple[int, int, bytes]]:
        """Return (offset, length, id) of each chunk in a leaf that is not zero. Raises DamagedError where it lies."""
        return self._slice_chunks(tree, _Slice(leaf, identity, 0, FAN_OUT))

    def _slice_chunks(self, tree: TreeRef, part: "_Slice") -> list[tuple[int, int, bytes]]:
        chunks = []
        children = self._leaf(part.identity)
        check_end(tree, 0, part.leaf * FAN_OUT, children)
        for slot in range(part.first, part.stop):
            child = children[slot]
            if child is None:
                continue
            offset = (part.leaf * FAN_OUT + slot) * tree.chunk_size
            chunks.append((offset, min(tree.chunk_size, tree.size - offset), child))
        return chunks

    def pieces(self, tree: TreeRef, leaf: int, identity: bytes, first: int, stop: int) -> list[Piece]:
        """Return the chunks `first` to `stop` of a leaf that are not zero, checked, in order. Raises DamagedError."""
        return self._read_slice(tree, _Slice(leaf, identity, first, stop))

    def _read_slice(self, tree: TreeRef, part: "_Slice") -> list[Piece]:
        plan = self._plan(tree, part)
        return _in_places(plan, self.read_anywhere(plan.wanted, PackKind.DATA))

    def _plan(self, tree: TreeRef, part: "_Slice") -> "_Plan":
        """Find out which chunks belong there. Raises DamagedError where the list or the index lies."""
        seen = self._reloads
        places: dict[bytes, list[int]] = {}
        lengths: dict[bytes, int] = {}
        wanted: dict[bytes, Location] = {}
        for offset, length, chunk in self._slice_chunks(tree, part):
            places.setdefault(chunk, []).append(offset)
            if lengths.setdefault(chunk, length) != length:
                raise DamagedError(
                    "a chunk list uses one chunk at places of different length", hint="the backup was forged or damaged"
                )
            if chunk not in wanted:
                location = self._locate(chunk, "chunk")
                if location.entry.raw != length:
                    raise ChunkCorruptError(
                        f"chunk {chunk.hex()[:16]} has {location.entry.raw} bytes where {length} belong"
                    )
                wanted[chunk] = location
        return _Plan(part, places, wanted, seen)

    def _decode(self, plan: "_Plan", under_way: dict[bytes, "_Stored"]) -> list[Piece]:
        """Return the slice's chunks, checked, out of what is on its way; what is bad there, from wherever else it can be read."""
        return _in_places(plan, (self._decode_chunk(plan, location, under_way) for location in plan.wanted.values()))

    def _decode_chunk(self, plan: "_Plan", location: Location, under_way: dict[bytes, "_Stored"]) -> Blob:
        entry = location.entry
        try:
            parts, start = under_way[entry.id]
            data = parts[0].result() if len(parts) == 1 else b"".join(part.result() for part in parts)
            stored = memoryview(data)[start : start + entry.stored]
            return self._decrypt(location.pack, entry, stored, PackKind.DATA)
        except (DamagedError, ObjectNotFoundError):
            return self._read_elsewhere(entry.id, PackKind.DATA, plan.seen)

    def _ask(self, plans: list["_Plan"], blocks: PackBlocks, pool: ThreadPoolExecutor) -> dict[bytes, "_Stored"]:
        """Ask for all chunks of the plans: by blocks where most of a block is needed, else by themselves."""
        wanted = {chunk: location for plan in plans for chunk, location in plan.wanted.items()}
        used: Counter[tuple[int, int]] = Counter()
        for pack, entry in wanted.values():
            for number in blocks.numbers(entry.offset, entry.stored):
                used[pack, number] += entry.stored
        found: dict[bytes, _Stored] = {}
        alone: list[Location] = []
        for location in sorted(wanted.values(), key=lambda location: (location.pack, location.entry.offset)):
            pack, entry = location
            numbers = blocks.numbers(entry.offset, entry.stored)
            if all(used[pack, number] >= BLOCK // 8 for number in numbers):
                path = self._repository.cache.pack(pack).path
                found[entry.id] = _Stored(
                    [blocks.get(path, number, pool.submit) for number in numbers], entry.offset % BLOCK
                )
            else:
                alone.append(location)
        for pack, entries in ranges(alone):
            part = pool.submit(self.fetch_range, pack, entries)
            found.update((entry.id, _Stored([part], entry.offset - entries[0].offset)) for entry in entries)
        return found

    def allocated(self, entry: ManifestEntry) -> Iterator[Extent]:
        """Yield the runs of the disk that are not zero, in whole chunks, ascending. Raises DamagedError."""
        tree = entry.tree

        def runs() -> Iterator[Extent]:
            for leaf, identity in self.tree(tree).leaves():
                for offset, length, _ in self.leaf_chunks(tree, leaf, identity):
                    yield Extent(offset, length)

        return merge(runs())

    def restore_disk(
        self, entry: DiskEntry, target: BlockWriter, *, advance: Callable[[int], None], threads: int | None = None
    ) -> None:
        """Write the whole disk to `target`, in parallel; zero runs by `write_zeroes`. The caller finishes or aborts the target.

        `advance` is told the bytes of the disk that are done. Raises DamagedError, and what the target raises.
        """
        tree = entry.tree
        gate = threading.BoundedSemaphore(max(1, target.writers))

        buffers = threading.local()

        def write_slice(plan: _Plan, under_way: dict[bytes, _Stored]) -> int:
            start, end = plan.part.span(tree)
            pieces = self._decode(plan, under_way)
            if not hasattr(buffers, "view"):
                buffers.view = memoryview(aligned_buffer(max(SLICE, tree.chunk_size)))
            with gate:
                at = start
                for run in _joined(pieces, buffers.view):
                    if run.offset > at:
                        target.write_zeroes(at, run.offset - at)
                    target.write(run.offset, run.data)
                    at = run.offset + len(run.data)
                if at < end:
                    target.write_zeroes(at, end - at)
            return end - start

        def zeroes(start: int, end: int) -> None:
            if start < end:
                target.write_zeroes(start, end - start)
                advance(end - start)

        at = 0
        for part, size in self._in_order(tree, self._slices(tree, 0, tree.size), write_slice, threads):
            start, at = at, part.span(tree)[1]
            zeroes(start, at - size)
            advance(size)
        zeroes(at, tree.size)

    def read_disk(
        self, entry: ManifestEntry, start: int = 0, end: int | None = None, *, threads: int | None = None
    ) -> Iterator[Piece]:
        """Yield the chunks that touch [start, end) and are not zero, whole and in order; read ahead in parallel."""
        tree = entry.tree
        stop = tree.size if end is None else min(end, tree.size)
        for _, pieces in self._in_order(tree, self._slices(tree, start, stop), self._decode, threads):
            for piece in pieces:
                if piece.offset < stop and piece.offset + len(piece.data) > start:
                    yield piece

    def _slices(self, tree: TreeRef, start: int, stop: int) -> Iterator["_Slice"]:
        """Yield the parts of the disk that touch [start, stop) and may hold data, in order."""
        leaf_size = FAN_OUT * tree.chunk_size
        step = max(1, min(FAN_OUT, SLICE // tree.chunk_size))
        for leaf, identity in self.tree(tree).leaves(start // leaf_size, -(-stop // leaf_size)):
            for first in range(0, FAN_OUT, step):
                part = _Slice(leaf, identity, first, first + step)
                begin, end = part.span(tree)
                if begin < end and begin < stop and end > start:
                    yield part

    def _in_order(
        self,
        tree: TreeRef,
        parts: Iterable["_Slice"],
        work: Callable[["_Plan", dict[bytes, "_Stored"]], R],
        threads: int | None,
    ) -> Iterator[tuple["_Slice", R]]:
        """Yield what `work` makes of each part, in order. Meanwhile the storage is asked for the next ones, by as many threads as keep it busy."""
        count = threads or default_threads()
        stream = iter(parts)
        blocks = PackBlocks(self._repository.storage, size=BLOCK, kept=BLOCKS_KEPT)
        with (
            ThreadPoolExecutor(self._repository.storage.concurrency, thread_name_prefix="fetch") as fetching,
            ThreadPoolExecutor(count, thread_name_prefix="read") as working,
        ):
            window: deque[tuple[_Slice, Future[R]]] = deque()
            try:
                while plans := [self._plan(tree, part) for part in islice(stream, GROUP)]:
                    under_way = self._ask(plans, blocks, fetching)
                    for plan in plans:
                        own = {chunk: under_way[chunk] for chunk in plan.wanted}
                        window.append((plan.part, working.submit(work, plan, own)))
                    while len(window) > count + 1:
                        part, future = window.popleft()
                        yield part, future.result()
                while window:
                    part, future = window.popleft()
                    yield part, future.result()
            finally:
                fetching.shutdown(wait=False, cancel_futures=True)
                for _, future in window:
                    future.cancel()

    def read_file(self, entry: FileEntry) -> bytes:
        """Return the content of a configuration file. Raises DamagedError."""
        if entry.size > MAX_FILE:
            raise DamagedError(f"{entry.name} claims {entry.size} bytes", hint="the backup was forged or damaged")
        data = bytearray(entry.size)
        for piece in self.read_disk(entry, threads=1):
            data[piece.offset : piece.offset + len(piece.data)] = piece.data
        return bytes(data)


def _in_places(plan: _Plan, blobs: Iterable[Blob]) -> list[Piece]:
    return sorted(Piece(offset, blob.data) for blob in blobs for offset in plan.places[blob.entry.id])


def _joined(pieces: Iterable[Piece], buffer: memoryview) -> Iterator[Piece]:
    """Join neighbours in `buffer`, so that they are written at once; each result is overwritten by the next."""
    offset = length = 0
    for piece in pieces:
        if length and piece.offset != offset + length:
            yield Piece(offset, buffer[:length])
            length = 0
        if not length:
            offset = piece.offset
        buffer[length : length + len(piece.data)] = piece.data
        length += len(piece.data)
    if length:
        yield Piece(offset, buffer[:length])
