"""What the engine reads disks from and writes them to: the interface between sources, targets and repository."""

from collections.abc import Iterator
from typing import Protocol

from lab_backup.extent import Extent

Buffer = bytes | bytearray | memoryview


class BlockReader(Protocol):
    """A disk whose content does not change while it is open (a point in time)."""

    @property
    def size(self) -> int:
        """Length of the disk in bytes; any number, not only multiples of a sector."""
        ...

    @property
    def readers(self) -> int:
        """How many threads may usefully call `read_into` at once; 1 means that calls are serialised by the caller."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`, all of them or an error. Safe to call from `readers` threads."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Return the whole disk as data and zero runs, sorted, gapless. What cannot be told apart is data."""
        ...

    def close(self) -> None:
        """Let go of the disk; may be called several times."""
        ...


class BlockWriter(Protocol):
    """A disk being filled by a restore, which accounts for each of its bytes by exactly one `write` or `write_zeroes`.

    Ranges of concurrent calls never overlap. Errors are LabBackupErrors that name the target; after one, the caller lets its other calls
    end and calls `abort`.
    """

    @property
    def writers(self) -> int:
        """How many threads may usefully call `write` and `write_zeroes` at once."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`, all of it or an error."""
        ...

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make `length` bytes from `offset` read as zeroes, in any number of bytes at once, taking no space where the target can.

        Costs nothing where the target is new and reads as zeroes anyway; on a device, which holds what was there before, it wipes.
        """
        ...

    def finish(self) -> None:
        """Make everything durable under its final name. Without this call the target must be thrown away."""
        ...

    def abort(self) -> None:
        """Remove what was made, and nothing else. May be called at any time, also twice, after a failure, and after `finish`.

        A device keeps what was written to it so far, since what it held before is gone.
        """
        ...
