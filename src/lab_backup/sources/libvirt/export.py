"""Disks of a VM as the engine sees them, read over NBD."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee

from lab_backup.blocks import BlockReader
from lab_backup.extent import Extent, intersect, merge
from lab_backup.nbd.blocks import NbdBlockReader
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdError
from lab_backup.nbd.protocol import ALLOCATION, DIRTY, Allocation
from lab_backup.units import MiB

WINDOW_GAP = 16 * MiB
"""Dirty runs closer than this are looked up in the allocation map by one request; it answers for the gap as well."""


class WatchedReader:
    """A reader that tells somebody of every read, and lets them explain why one has failed."""

    def __init__(self, inner: BlockReader, alive: Callable[[], None], explain: Callable[[], None]) -> None:
        """Call `alive` before each read; `explain` after one that failed may raise what is really the matter."""
        self._inner = inner
        self._alive = alive
        self._explain = explain

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._inner.size

    @property
    def readers(self) -> int:
        """How many threads may read at once."""
        return self._inner.readers

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`."""
        self._alive()
        try:
            self._inner.read_into(offset, buffer)
        except NbdError:
            self._explain()
            raise

    def extents(self) -> Iterator[Extent]:
        """Return the disk as data and zero runs."""
        self._alive()
        try:
            yield from self._inner.extents()
        except NbdError:
            self._explain()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()


@dataclass(frozen=True, slots=True)
class VmDisk:
    """A `DiskExport` of a VM. `dirty` returns what changed since the previous backup, sorted; None means the whole disk."""

    name: str
    identity: str
    format: str
    checkpoint: str | None
    full_reason: str | None
    reader: BlockReader
    dirty: Callable[[], Iterator[Extent]] | None

    @property
    def incremental(self) -> bool:
        """Whether `changed` is less than the whole disk."""
        return self.dirty is not None

    def changed(self) -> Iterator[Extent]:
        """Return what may differ from the previous backup, or everything; zero where it is known to read as zeroes."""
        return self.reader.extents() if self.dirty is None else self.dirty()


def dirty_extents(connect: Callable[[str], NbdClient], context: str, explain: Callable[[], None]) -> Iterator[Extent]:
    """Return the runs that the bitmap behind `context` marks, split into data and zeroes.

    `connect` opens a connection with the one context it is given: asking for both on one makes the server walk the
    allocation of the whole disk. What a guest has discarded is dirty as well, but reads as zeroes.
    """
    try:
        with connect(context) as bitmap, connect(ALLOCATION) as allocation:
            marked = (Extent(offset, length) for offset, length, flags in bitmap.status(context) if flags & DIRTY)
            wanted, windows = tee(marked)
            yield from merge(intersect(wanted, _allocated(allocation, _windows(windows))))
    except NbdError:
        explain()
        raise


def open_reader(connect: Callable[[str], NbdClient]) -> NbdBlockReader:
    """Return a reader of the whole export."""
    return NbdBlockReader(connect(ALLOCATION))


def _windows(runs: Iterable[Extent]) -> Iterator[Extent]:
    """Join runs that lie closer together than WINDOW_GAP, but not to more than a request can ask for."""
    held: Extent | None = None
    for run in runs:
        if held is not None and run.offset - held.end < WINDOW_GAP and run.end - held.offset < 1024 * MiB:
            held = Extent(held.offset, run.end - held.offset)
            continue
        if held is not None:
            yield held
        held = run
    if held is not None:
        yield held


def _allocated(client: NbdClient, windows: Iterable[Extent]) -> Iterator[Extent]:
    for window in windows:
        for offset, length, flags in client.status(ALLOCATION, window.offset, window.end):
            yield Extent(offset, length, zero=bool(flags & Allocation.ZERO))
