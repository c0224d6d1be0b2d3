"""A disk in a backup, to be read at any place as if it were a real one."""

from collections.abc import Iterator

from lab_backup.extent import Extent
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.manifest import Entry
from lab_backup.repository.reader import Reader
from lab_backup.repository.tree import FAN_OUT
from lab_backup.units import MiB

MAX_STEP = 8 * MiB  # read and checked at once, so that a large request stays within bounds


class StoredDisk:
    """A BlockReader over a disk or file in a repository. Thread-safe. Every byte is checked against its id."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        """Look at `entry` of a manifest of the reader's repository."""
        self._reader = reader
        self._entry = entry
        self._tree = reader.tree(entry.tree)

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._entry.size

    @property
    def readers(self) -> int:
        """As many threads as a restore uses."""
        return default_threads()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`. Raises DamagedError; ValueError beyond the end."""
        end = offset + len(buffer)
        if offset < 0 or end > self.size:
            raise ValueError(f"{offset} to {end} is not on a disk of {self.size} bytes")
        chunk_size = self._entry.chunk_size
        step = max(1, MAX_STEP // chunk_size)
        chunk, stop = offset // chunk_size, -(-end // chunk_size)
        while chunk < stop:
            leaf, slot = divmod(chunk, FAN_OUT)
            count = min(FAN_OUT - slot, stop - chunk, step)
            self._fill(leaf, slot, slot + count, offset, buffer)
            chunk += count

    def _fill(self, leaf: int, first: int, stop: int, offset: int, buffer: memoryview) -> None:
        """Copy what the chunks `first` to `stop` of a leaf hold of [offset, offset + len(buffer)) into the buffer."""
        chunk_size = self._entry.chunk_size
        at = max(offset, (leaf * FAN_OUT + first) * chunk_size)
        end = min(offset + len(buffer), (leaf * FAN_OUT + stop) * chunk_size)
        buffer[at - offset : end - offset] = bytes(end - at)
        identity = self._tree.node(0, leaf)
        if identity is None:
            return
        for piece in self._reader.pieces(self._entry.tree, leaf, identity, first, stop):
            start, finish = max(at, piece.offset), min(end, piece.offset + len(piece.data))
            data = memoryview(piece.data)[start - piece.offset : finish - piece.offset]
            buffer[start - offset : finish - offset] = data

    def extents(self) -> Iterator[Extent]:
        """Return the whole disk as data and zero runs. Raises DamagedError."""
        at = 0
        for extent in self._reader.allocated(self._entry):
            if extent.offset > at:
                yield Extent(at, extent.offset - at, zero=True)
            yield extent
            at = extent.end
        if at < self.size:
            yield Extent(at, self.size - at, zero=True)

    def close(self) -> None:
        """Do nothing: the repository stays open."""
