"""Where a stream is cut into chunks: by its content (FastCDC), so that what comes after an insertion is cut as it was before.

The rolling hash is keyed with a number of the repository's own. See `docs/decisions/` for what that hides and what it does not.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from pyfastcdc import FastCDC

from lab_backup.repository.keys import RepositoryKeys, derive
from lab_backup.units import MiB

MAX_AVERAGE = 1 * MiB  # the library takes no minimum above 1 MiB, and buffers grow with the maximum
NORMALISATION: Literal[1] = 1  # of the paper's levels; what a writer uses concerns no reader
_SEED_BITS = 63  # what the library takes
_BLOCK = 2 * MiB  # read and cut at once


class Chunking(NamedTuple):
    """Lengths of chunks in bytes. The last chunk of a stream or file may be shorter than `minimum`."""

    minimum: int
    average: int
    maximum: int


def chunking_for(chunk_size: int) -> Chunking:
    """Return the lengths that suit a repository whose disks have chunks of `chunk_size`."""
    average = min(chunk_size, MAX_AVERAGE)
    return Chunking(average // 4, average, average * 4)


def chunking_seed(keys: RepositoryKeys) -> int:
    """Return the repository's own number for the rolling hash; repositories that give equal ids have equal ones."""
    return int.from_bytes(derive(keys.identity, "chunking")[:8], "little") >> (64 - _SEED_BITS)


class Buffers:
    """Blocks of memory in circulation."""

    def __init__(self, size: int) -> None:
        """Hand out blocks of `size` bytes."""
        self._size = size
        self._free: deque[bytearray] = deque()

    def take(self) -> bytearray:
        """Return a block with anything in it."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(self._size)

    def give(self, block: bytearray) -> None:
        """Take a block back. Any thread may call this."""
        self._free.append(block)


class Cutter:
    """Cuts what is read into its buffer. For one thread.

    Chunks go to `emit` (block, view of its chunks, their lengths), block by block; who gets them gives the block back to `buffers`.
    """

    def __init__(self, chunking: Chunking, seed: int, emit: Callable[[bytearray, memoryview, list[int]], None]) -> None:
        """Cut by `chunking`, keyed with `seed`."""
        self._fastcdc = FastCDC(
            chunking.average,
            min_size=chunking.minimum,
            max_size=chunking.maximum,
            normalized_chunking=NORMALISATION,
            seed=seed,
        )
        self._maximum = chunking.maximum
        self._size = max(_BLOCK, 2 * chunking.maximum)
        self.buffers = Buffers(self._size)
        self._emit = emit
        self._block: bytearray | None = None
        self._filled = 0

    def space(self) -> memoryview:
        """Return where the next bytes go: never empty."""
        if self._block is None:
            self._block, self._filled = self.buffers.take(), 0
        return memoryview(self._block)[self._filled :]

    def add(self, count: int) -> None:
        """Say that `count` bytes were put into `space`."""
        self._filled += count
        if self._filled == self._size:
            self._cut(last=False)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Put bytes in that are in memory already."""
        view = memoryview(data)
        while view:
            with self.space() as space:
                count = min(len(space), len(view))
                space[:count] = view[:count]
            self.add(count)
            view = view[count:]

    def end(self) -> None:
        """Cut what is left: the stream or file ends here. The next byte begins another one."""
        if self._block is not None and self._filled:
            self._cut(last=True)

    def _cut(self, *, last: bool) -> None:
        block = self._block
        if block is None:
            return
        view = memoryview(block)[: self._filled]
        lengths: list[int] = []
        at = 0
        for chunk in self._fastcdc.cut_buf(view):
            # Where a chunk ends must not depend on where our block does.
            if not last and self._filled - at < self._maximum:
                break
            lengths.append(chunk.length)
            at += chunk.length
        rest = bytes(view[at:])
        self._block = None
        self._emit(block, view[:at], lengths)
        if rest:
            self.feed(rest)
