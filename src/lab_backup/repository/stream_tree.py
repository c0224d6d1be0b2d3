"""The chunk list of a stream: a hash tree whose nodes end where their content says, so that an insertion changes its surroundings only.

A leaf lists pieces of chunks with their lengths, an inner node the nodes below with the sums of theirs; any byte is found without reading the
rest. Byte table in `docs/format/streams.md`.
"""

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import ID, MAX_RAW

FAN_OUT = 64
MIN_FAN_OUT = 16  # but for the last node of a level: it bounds how deep a tree can be
CUT_ONE_IN = 32  # above the least, a node ends after a child whose id says so
MAX_LEVELS = 13  # 16**13 chunks are more than 2**50

_FORMAT = 2
_HEAD = struct.Struct("<BBH")  # format, level (0 is a leaf), children
_LINK = struct.Struct(f"<{ID}sIQQ")  # id, skip, length, weight


class Link(NamedTuple):
    """A part of a stream: `length` bytes, in a leaf those from `skip` on in the chunk `id`, else all that is below the node `id`.

    `weight` counts what the stream's owner counts; a node has the sum of what is below.
    """

    id: bytes
    skip: int
    length: int
    weight: int = 0


class StreamRef(NamedTuple):
    """A stored stream of `size` bytes and `weight`; `root` is None where it is empty. No piece is longer than `max_piece`."""

    size: int
    weight: int
    root: bytes | None
    max_piece: int = MAX_RAW


def encode_node(level: int, links: list[Link]) -> bytes:
    """Return the bytes of a node of 1 to 64 links."""
    return _HEAD.pack(_FORMAT, level, len(links)) + b"".join(_LINK.pack(*link) for link in links)


def decode_node(data: bytes, level: int | None, size: int, weight: int, max_piece: int) -> tuple[int, list[Link]]:
    """Return the level and the links of a node that stands for `size` bytes of that weight. `level` None: any that a tree can have.

    Raises DamagedError where it is not what its place asks for.
    """
    if len(data) >= _HEAD.size:
        form, found, count = _HEAD.unpack_from(data)
        if (
            form == _FORMAT
            and found == (found if level is None else level)
            and found < MAX_LEVELS
            and 1 <= count <= FAN_OUT
            and len(data) == _HEAD.size + count * _LINK.size
        ):
            links = [Link(*fields) for fields in _LINK.iter_unpack(data[_HEAD.size :])]
            if (
                sum(link.length for link in links) == size
                and sum(link.weight for link in links) == weight
                and all(
                    link.length >= 1
                    and (
                        link.skip + link.length <= MAX_RAW and link.length <= max_piece
                        if found == 0
                        else link.skip == 0
                    )
                    for link in links
                )
            ):
                return found, links
    raise DamagedError("a node of a stream is not what its place asks for", hint="the backup was forged or damaged")


class StreamBuilder:
    """Builds the list of a stream from its pieces in order; memory for one node a level."""

    def __init__(self, store: Callable[[bytes], bytes]) -> None:
        """`store` takes a node's bytes and returns its id."""
        self._store = store
        self._open: list[list[Link]] = []
        self.size = 0
        self.weight = 0

    def add(self, link: Link) -> None:
        """Append a piece of a chunk, at least one byte."""
        self.size += link.length
        self.weight += link.weight
        self._put(0, link)

    def _put(self, level: int, link: Link) -> None:
        if level == len(self._open):
            self._open.append([])
        links = self._open[level]
        links.append(link)
        if len(links) == FAN_OUT or (len(links) >= MIN_FAN_OUT and link.id[0] % CUT_ONE_IN == 0):
            self._close(level)

    def _close(self, level: int) -> None:
        links = self._open[level]
        self._open[level] = []
        identity = self._store(encode_node(level, links))
        length = sum(link.length for link in links)
        self._put(level + 1, Link(identity, 0, length, sum(link.weight for link in links)))

    def finish(self) -> StreamRef:
        """Return the stream, after the last piece."""
        level = 0
        while level < len(self._open):
            links = self._open[level]
            if level > 0 and level == len(self._open) - 1 and len(links) == 1:
                return StreamRef(self.size, self.weight, links[0].id)
            if links:
                self._close(level)
            level += 1
        return StreamRef(0, 0, None)


class Placed(NamedTuple):
    """A piece at its place: bytes, and weight, of the stream before it."""

    offset: int
    before: int
    link: Link


class StreamReader:
    """Looks into the list of a stored stream; nodes are remembered. Thread-safe."""

    def __init__(self, stream: StreamRef, fetch: Callable[[bytes], bytes]) -> None:
        """Read nodes by `fetch`, which returns a node's checked bytes or raises DamagedError."""
        self.stream = stream
        self._node = lru_cache(maxsize=8 * MAX_LEVELS)(
            lambda identity, level, size, weight: decode_node(fetch(identity), level, size, weight, stream.max_piece)
        )

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Placed]:
        """Yield the pieces that touch [start, stop), in order. Raises DamagedError where a node lies or cannot be read."""
        end = self.stream.size if stop is None else min(stop, self.stream.size)
        check_empty(self.stream)
        if self.stream.root is not None and start < end:
            whole = Placed(0, 0, Link(self.stream.root, 0, self.stream.size, self.stream.weight))
            yield from self._below(whole, None, start, end)

    def _below(self, at: Placed, level: int | None, start: int, stop: int) -> Iterator[Placed]:
        link = at.link
        found, links = self._node(link.id, level, link.length, link.weight)
        offset, before = at.offset, at.before
        for child in links:
            if offset >= stop:
                return
            if offset + child.length > start:
                place = Placed(offset, before, child)
                if found == 0:
                    yield place
                else:
                    yield from self._below(place, found - 1, start, stop)
            offset += child.length
            before += child.weight

    def piece(self, offset: int) -> Placed:
        """Return the piece that holds the byte `offset` of the stream."""
        return next(self.pieces(offset, offset + 1))


def check_empty(stream: StreamRef) -> None:
    """Raise DamagedError where a stream has bytes but no list, or the other way round."""
    if (stream.root is None) != (stream.size == 0) or (stream.size == 0 and stream.weight != 0):
        raise DamagedError("a stream has a length but no list, or a list but no length", hint="the backup was forged")
