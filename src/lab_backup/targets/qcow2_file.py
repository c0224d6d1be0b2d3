"""A disk restored into a new qcow2 image file."""

from pathlib import Path

from lab_backup.blocks import Buffer
from lab_backup.qcow2.layout import CLUSTER, Layout
from lab_backup.targets.new_file import NewFile, Owner
from lab_backup.targets.raw_file import WRITERS


class Qcow2Target:
    """A new qcow2 file whose layout is known beforehand, so that chunks go to their final place from many threads. Implements BlockWriter.

    Writes outside the layout's data are a LayoutError. The image's tables are written at the end: a file that was abandoned is no image.
    """

    writers = WRITERS

    def __init__(self, path: Path, layout: Layout, *, owner: Owner | None = None, mode: int = 0o600) -> None:
        """Begin the image that `layout` describes, as `NewFile` does."""
        self._layout = layout
        self._file = NewFile(path, needed=layout.file_size, owner=owner, mode=mode)
        try:
            self._file.truncate(layout.file_size)
        except BaseException:
            self._file.discard()
            raise

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data`, which is not empty, at `offset` of the disk."""
        self._file.write(self._layout.host_offset(offset, memoryview(data).nbytes), data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Leave the clusters unallocated, or as empty as they are."""

    def finish(self) -> None:
        """Write the tables, make the file durable and give it its name."""
        for index, cluster in enumerate(self._layout.stream(0, self._layout.data_offset)):
            if isinstance(cluster, bytes):
                self._file.write(index * CLUSTER, cluster)
        self._file.publish()

    def abort(self) -> None:
        """Remove the file."""
        self._file.discard()
