"""An NBD export as the engine reads it."""

from collections.abc import Iterator

from lab_backup.extent import Extent, merge
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.protocol import ALLOCATION, Allocation


class NbdBlockReader:
    """A `BlockReader` over one connection, which it closes at the end.

    One connection, since more of them on one host were slower in every measurement.
    """

    def __init__(self, client: NbdClient) -> None:
        """Take over `client`; without the context `base:allocation` everything counts as data."""
        self._client = client

    @property
    def size(self) -> int:
        """Length of the export in bytes."""
        return self._client.size

    @property
    def readers(self) -> int:
        """One thread at a time; more would wait for each other."""
        return 1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`."""
        self._client.read_into(offset, buffer)

    def extents(self) -> Iterator[Extent]:
        """Return the export as data and zero runs. A hole that does not promise zeroes is data."""
        if ALLOCATION in self._client.contexts:
            runs = self._client.status(ALLOCATION)
            return merge(Extent(offset, length, zero=bool(flags & Allocation.ZERO)) for offset, length, flags in runs)
        return merge([Extent(0, self._client.size)])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
