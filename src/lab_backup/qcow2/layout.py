"""Where every byte of a new qcow2 image lies, computed from the map of its data before anything is written.

The image is version 3 with 64 KiB clusters and 16-bit reference counts, without a backing file, snapshots, lazy reference counts or any
incompatible feature, so every QEMU since 1.1 reads it. Its parts follow each other without gaps:

    header | reference count table | reference count blocks | L1 table | L2 tables | data

Data clusters are in the guest's order, so a run of the disk is a run of the file, any number of threads may put chunks at their final place
at once, and the file can also be produced front to back, in whole or from any byte, with its length known before the first. Clusters
without data stay unallocated and read as zeroes.

The map is a bit per cluster, kept only for the 512 MiB regions that hold data: at most 2.2 MiB of memory per TiB of data, whatever the
fragmentation. Format: QEMU's docs/interop/qcow2.txt.
"""

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lab_backup.errors import LabBackupError
from lab_backup.extent import Extent
from lab_backup.units import TiB

CLUSTER = 65536  # bytes; QEMU's default, and the largest for which an L2 table is one cluster of 512 MiB of disk
SECTOR = 512  # bytes; a qcow2 disk is a whole number of these
MAX_SIZE = 2048 * TiB  # bytes; QEMU reads at most 32 MiB of L1 table

_L2_ENTRIES = CLUSTER // 8
_REGION = _L2_ENTRIES * CLUSTER  # bytes of disk that one L2 table maps
_REFCOUNTS = CLUSTER // 2  # clusters that one block of 16-bit counts covers
_COPIED = 1 << 63  # the cluster's reference count is exactly one
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_FULL_BLOCK = b"\0\1" * _REFCOUNTS
_FULL_REGION = (1 << _L2_ENTRIES) - 1


class LayoutError(LabBackupError):
    """The disk's map cannot be that of a disk, or a range was asked for that the map says is empty."""


class GuestRun(NamedTuple):
    """`length` bytes of the image file that are the disk's bytes from `offset` on."""

    offset: int
    length: int


class Layout:
    """The places of everything in one qcow2 image. Immutable, so any number of threads may ask it."""

    def __init__(self, size: int, data: Iterable[Extent]) -> None:
        """Lay out a disk of `size` bytes whose `data` runs are sorted and without overlaps; zero runs are ignored.

        Raises LayoutError where `size` is no size of a qcow2 disk, or `data` is out of order or leaves the disk.
        """
        if not 0 <= size <= MAX_SIZE:
            raise LayoutError(f"a qcow2 disk cannot have {size} bytes", hint="restore it as raw")
        self.disk_size = size
        self._map_data(size, data)
        self._place()

    def _map_data(self, size: int, data: Iterable[Extent]) -> None:
        regions: dict[int, int] = {}
        end = 0
        for extent in data:
            if extent.offset < end or extent.length < 0 or extent.end > size:
                raise LayoutError(
                    f"the map of the disk is wrong at byte {extent.offset}", hint="the backup was forged or damaged"
                )
            end = extent.end
            if not extent.zero and extent.length:
                _mark(regions, extent.offset // CLUSTER, -(-extent.end // CLUSTER))
        self._regions = sorted(regions)
        self._bits = [regions[region] for region in self._regions]
        self._slot = {region: slot for slot, region in enumerate(self._regions)}
        self._before = array("Q", [0])  # data clusters before each region, and in all of them
        for bits in self._bits:
            self._before.append(self._before[-1] + bits.bit_count())

    def _place(self) -> None:
        self._l1_entries = -(-self.virtual_size // _REGION)
        l1_clusters = -(-self._l1_entries * 8 // CLUSTER)
        fixed = 1 + l1_clusters + len(self._regions) + self._before[-1]
        table, blocks = 1, 1
        while True:
            needed = -(-(fixed + table + blocks) // _REFCOUNTS)
            if needed == blocks and -(-blocks * 8 // CLUSTER) == table:
                break
            blocks, table = needed, -(-needed * 8 // CLUSTER)
        self._refcount_table = CLUSTER
        self._refcount_table_clusters = table
        self._refcount_block = self._refcount_table + table * CLUSTER
        self._refcount_blocks = blocks
        self._l1 = self._refcount_block + blocks * CLUSTER
        self._l2 = self._l1 + l1_clusters * CLUSTER
        self.data_offset = self._l2 + len(self._regions) * CLUSTER
        self.file_size = self.data_offset + self._before[-1] * CLUSTER

    disk_size: int
    """Bytes of the disk, as given."""
    data_offset: int
    """Where the data begins in the file; all that describes the image lies before."""
    file_size: int
    """Bytes of the image file, the last cluster whole."""

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk that the guest sees: the disk's, rounded up to a whole number of sectors, as qcow2 asks. The rest is zero."""
        return -(-self.disk_size // SECTOR) * SECTOR

    def host_offset(self, offset: int, length: int) -> int:
        """Return where in the file the `length` (at least one) bytes of the disk from `offset` lie; they are one run there.

        Raises LayoutError if any of them lies in a cluster that has no data.
        """
        first, last = offset // CLUSTER, (offset + length - 1) // CLUSTER
        at = self._rank(first)
        if length < 1 or at is None or (last != first and self._rank(last) != at + last - first):
            raise LayoutError(
                f"the map of the disk has no data at byte {offset}", hint="the backup was forged or damaged"
            )
        return self.data_offset + at * CLUSTER + offset % CLUSTER

    def _rank(self, cluster: int) -> int | None:
        """Return how many data clusters lie before that one; None where it is not one itself."""
        region, index = divmod(cluster, _L2_ENTRIES)
        slot = self._slot.get(region)
        if slot is None or not (bits := self._bits[slot]) >> index & 1:
            return None
        return self._before[slot] + (bits & ((1 << index) - 1)).bit_count()

    def stream(self, start: int = 0, end: int | None = None) -> Iterator[bytes | GuestRun]:
        """Return the file's bytes from `start` to `end` (its end if None) in order, what is the disk's own as runs of the disk.

        A run may reach past `disk_size`, within the last cluster; those bytes are zeroes.
        """
        stop = self.file_size if end is None else min(end, self.file_size)
        for cluster in range(start // CLUSTER, -(-min(stop, self.data_offset) // CLUSTER)):
            offset = cluster * CLUSTER
            yield self._metadata(cluster)[max(start - offset, 0) : stop - offset]
        yield from self._data(max(start, self.data_offset) - self.data_offset, stop - self.data_offset)

    def _data(self, start: int, stop: int) -> Iterator[GuestRun]:
        if start >= stop:
            return
        for slot in range(bisect_right(self._before, start // CLUSTER) - 1, len(self._regions)):
            at = self._before[slot] * CLUSTER
            if at >= stop:
                return
            for first, count in _runs(self._bits[slot]):
                offset, length = self._regions[slot] * _REGION + first * CLUSTER, count * CLUSTER
                skip, keep = max(start - at, 0), min(length, stop - at)
                if skip < keep:
                    yield GuestRun(offset + skip, keep - skip)
                at += length

    def _metadata(self, cluster: int) -> bytes:
        offset = cluster * CLUSTER
        if offset >= self._l2:
            return self._l2_table((offset - self._l2) // CLUSTER)
        if offset >= self._l1:
            return self._l1_cluster((offset - self._l1) // CLUSTER)
        if offset >= self._refcount_block:
            first = (offset - self._refcount_block) // CLUSTER * _REFCOUNTS
            return _FULL_BLOCK[: 2 * max(self.file_size // CLUSTER - first, 0)].ljust(CLUSTER, b"\0")
        if offset >= self._refcount_table:
            first = (offset - self._refcount_table) // CLUSTER * _L2_ENTRIES
            blocks = range(first, min(first + _L2_ENTRIES, self._refcount_blocks))
            return _big_endian(self._refcount_block + block * CLUSTER for block in blocks)
        return self._header()

    def _header(self) -> bytes:
        return _HEADER.pack(
            b"QFI\xfb",
            3,  # version
            0,  # no backing file
            0,
            CLUSTER.bit_length() - 1,
            self.virtual_size,
            0,  # not encrypted
            self._l1_entries,
            self._l1,
            self._refcount_table,
            self._refcount_table_clusters,
            0,  # no snapshots
            0,
            0,  # incompatible features
            0,  # compatible features
            0,  # autoclear features
            4,  # reference counts of 2 ** 4 bits
            _HEADER.size,
        ).ljust(CLUSTER, b"\0")

    def _l1_cluster(self, index: int) -> bytes:
        entries = array("Q", bytes(CLUSTER))
        first = index * _L2_ENTRIES
        begin, end = bisect_right(self._regions, first - 1), bisect_right(self._regions, first + _L2_ENTRIES - 1)
        for slot in range(begin, end):
            entries[self._regions[slot] - first] = self._l2 + slot * CLUSTER | _COPIED
        return _big_endian(entries)

    def _l2_table(self, slot: int) -> bytes:
        entries = array("Q", bytes(CLUSTER))
        at = self.data_offset + self._before[slot] * CLUSTER | _COPIED
        for first, count in _runs(self._bits[slot]):
            entries[first : first + count] = array("Q", range(at, at + count * CLUSTER, CLUSTER))
            at += count * CLUSTER
        return _big_endian(entries)


def _mark(regions: dict[int, int], first: int, stop: int) -> None:
    for region in range(first // _L2_ENTRIES, -(-stop // _L2_ENTRIES)):
        base = region * _L2_ENTRIES
        low, high = max(first - base, 0), min(stop - base, _L2_ENTRIES)
        if high - low == _L2_ENTRIES:
            regions[region] = _FULL_REGION
        else:
            regions[region] = regions.get(region, 0) | ((1 << (high - low)) - 1) << low


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Return the first bit and the length of each run of ones, ascending."""
    at = 0
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        count = (~bits & (bits + 1)).bit_length() - 1
        bits >>= count
        at += gap
        yield at, count
        at += count


def _big_endian(entries: Iterable[int]) -> bytes:
    table = entries if isinstance(entries, array) else array("Q", entries)
    if sys.byteorder == "little":
        table.byteswap()
    return table.tobytes().ljust(CLUSTER, b"\0")
