"""A disk restored into a new raw image file."""

from pathlib import Path

from lab_backup.blocks import Buffer
from lab_backup.targets.new_file import NewFile, Owner

WRITERS = (
    8  # threads; more than the cores of a usual machine, so that a slow disk is kept busy while chunks are unpacked
)


class RawFileTarget:
    """A new sparse file of exactly the disk's size; zeroes take no space. Implements BlockWriter."""

    writers = WRITERS

    def __init__(
        self, path: Path, size: int, *, needed: int = 0, owner: Owner | None = None, mode: int = 0o600
    ) -> None:
        """Begin a disk of `size` bytes, `needed` of which are data, as `NewFile` does."""
        self._file = NewFile(path, needed=needed, owner=owner, mode=mode)
        try:
            self._file.truncate(size)
        except BaseException:
            self._file.discard()
            raise

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`."""
        self._file.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Leave the hole that is there."""

    def finish(self) -> None:
        """Make the file durable and give it its name."""
        self._file.publish()

    def abort(self) -> None:
        """Remove the file."""
        self._file.discard()
