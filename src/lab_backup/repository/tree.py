"""The chunk list of a disk: a hash tree with a fan-out of 64, in which a run of zeroes costs nothing.

A leaf lists the ids of up to 64 consecutive chunks, an inner node the ids of up to 64 nodes below; an all-zero child is a cleared bit. Nodes
are stored as blobs under the hash of their content, so equal parts of two disks, or of two backups of one, are the same nodes: an increment
writes the nodes on the way from each changed chunk to the root, and no more. Byte table in `docs/format/trees.md`.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import ID

FAN_OUT = 64
_NODE = struct.Struct("<BBQ")  # format, level (0 is a leaf), mask of children that are not zero
_FORMAT = 1
MAX_NODE = 4096  # more than a node of a disk or a stream takes
MAX_LEVELS = 10  # 64**10 chunks are more than 2**60

Child = bytes | None  # an id, or None for a range that reads as zeroes


class TreeRef(NamedTuple):
    """A stored disk: `size` bytes in chunks of `chunk_size`, and the id of the top node (None: all zero)."""

    size: int
    chunk_size: int
    root: Child

    @property
    def chunks(self) -> int:
        """How many chunks the disk has; the last one may be short."""
        return -(-self.size // self.chunk_size)

    @property
    def levels(self) -> int:
        """How many levels of nodes there are, at least one."""
        return levels(self.chunks)


def levels(chunks: int) -> int:
    """Return the levels of a tree over so many chunks."""
    count, reach = 1, FAN_OUT
    while reach < chunks:
        count, reach = count + 1, reach * FAN_OUT
    return count


def encode_node(level: int, children: list[Child]) -> bytes:
    """Return the bytes of a node with at most 64 children."""
    mask = sum(1 << slot for slot, child in enumerate(children) if child is not None)
    return _NODE.pack(_FORMAT, level, mask) + b"".join(child for child in children if child is not None)


def decode_node(data: bytes, level: int) -> list[Child]:
    """Return the 64 children of a node (None where zero or beyond the end). Raises DamagedError."""
    if len(data) < _NODE.size:
        raise DamagedError("a tree node is too short")
    form, found, mask = _NODE.unpack_from(data)
    if form != _FORMAT or found != level or len(data) != _NODE.size + mask.bit_count() * ID:
        raise DamagedError(
            "a tree node is not of the shape that its place asks for", hint="the backup was forged or damaged"
        )
    children: list[Child] = [None] * FAN_OUT
    at = _NODE.size
    while mask:
        slot = (mask & -mask).bit_length() - 1
        children[slot] = data[at : at + ID]
        at += ID
        mask &= mask - 1
    return children


def check_end(tree: TreeRef, level: int, first: int, children: Sequence[Child]) -> None:
    """Raise DamagedError where a node that begins at chunk `first` has children beyond the end of the disk."""
    within = -(-(tree.chunks - first) // FAN_OUT**level)
    if any(child is not None for child in children[max(0, within) :]):
        raise DamagedError("a chunk list is longer than its disk", hint="the backup was forged or damaged")


def node_id(key: bytes, data: bytes) -> bytes:
    """Return the id of a node: BLAKE3 keyed with the repository's node key."""
    return blake3(data, key=key).digest()


class TreeReader:
    """Looks into a stored tree; inner nodes are remembered. Thread-safe."""

    def __init__(self, tree: TreeRef, fetch: Callable[[bytes], bytes]) -> None:
        """Read nodes by `fetch`, which returns a node's checked bytes or raises DamagedError."""
        self.tree = tree
        self._node = lru_cache(maxsize=4 * MAX_LEVELS)(
            lambda identity, level: tuple(decode_node(fetch(identity), level))
        )
        self._fetch = fetch

    def node(self, level: int, index: int) -> Child:
        """Return the id of the node `index` on `level` (0: leaves), None where its range is zero."""
        top = self.tree.levels - 1
        identity = self.tree.root
        for at in range(top, level, -1):
            if identity is None:
                return None
            slot = index // FAN_OUT ** (at - 1 - level) % FAN_OUT
            identity = self._node(identity, at)[slot]
        return identity

    def children(self, level: int, index: int) -> list[Child]:
        """Return the 64 children of that node."""
        identity = self.node(level, index)
        if identity is None:
            return [None] * FAN_OUT
        return decode_node(self._fetch(identity), level) if level == 0 else list(self._node(identity, level))

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Return index and id of each leaf that is not all zero, ascending, within [start, stop) leaves."""
        last = -(-self.tree.chunks // FAN_OUT) if stop is None else stop
        if self.tree.root is not None:
            yield from self._walk(self.tree.root, self.tree.levels - 1, 0, start, last)

    def _walk(self, identity: bytes, level: int, first: int, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        if level == 0:
            if start <= first < stop:
                yield first, identity
            return
        span = FAN_OUT ** (level - 1)  # leaves below each child
        children = self._node(identity, level)
        check_end(self.tree, level, first * FAN_OUT, children)
        for slot, child in enumerate(children):
            begin = first + slot * span
            if child is not None and begin < stop and begin + span > start:
                yield from self._walk(child, level - 1, begin, start, stop)


class TreeBuilder:
    """Builds the levels above the leaves from leaf ids in ascending order; memory for one node a level."""

    def __init__(self, tree: TreeRef, parent: TreeReader | None, store: Callable[[bytes], bytes]) -> None:
        """Build for `tree`'s size (its root is ignored); what is not given comes from `parent`.

        `store` takes a node's bytes and returns its id. `parent` has the same size and chunk size.
        """
        self._top = levels(tree.chunks) - 1
        self._parent = parent
        self._store = store
        self._open: list[tuple[int, list[Child]] | None] = [None] * (self._top + 1)
        self._root: Child = parent.tree.root if parent else None

    def add(self, leaf: int, identity: Child) -> None:
        """Say what leaf number `leaf` is; numbers ascend from call to call."""
        self._put(1, leaf, identity)

    def _put(self, level: int, child: int, identity: Child) -> None:
        if level > self._top:
            self._root = identity
            return
        index, slot = divmod(child, FAN_OUT)
        node = self._open[level]
        if node is not None and node[0] != index:
            self._flush(level)
            node = None
        if node is None:
            base: list[Child] = self._parent.children(level, index) if self._parent else [None] * FAN_OUT
            node = self._open[level] = (index, base)
        node[1][slot] = identity

    def _flush(self, level: int) -> None:
        node = self._open[level]
        if node is None:
            return
        self._open[level] = None
        index, children = node
        identity = self._store(encode_node(level, children)) if any(child is not None for child in children) else None
        self._put(level + 1, index, identity)

    def finish(self) -> Child:
        """Return the root's id, after the last leaf."""
        for level in range(1, self._top + 1):
            self._flush(level)
        return self._root
