"""The content of one file, which others may write to, cut or remove meanwhile."""

import errno
import os
from collections.abc import Callable, Iterator

from lab_backup.extent import Extent
from lab_backup.filetree import FileRecord

_NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP}


class LocalFileContent:
    """An open regular file. Implements FileContent.

    What is appended after it was opened is not read. `failed` is told of an error of the storage; the file then ends there.
    """

    def __init__(self, record: FileRecord, number: int, failed: Callable[[OSError], None]) -> None:
        """Read from the open descriptor `number`, which stays its owner's."""
        self._record = record
        self._number = number
        self._failed = failed

    @property
    def record(self) -> FileRecord:
        """The file, as it was when it was opened."""
        return self._record

    def extents(self) -> Iterator[Extent]:
        """Return data and holes as the file system tells them; the end is nearer than `record.size` where the file was cut since."""
        end, at = self._record.size, 0
        while at < end:
            try:
                data = os.lseek(self._number, at, os.SEEK_DATA)
                hole = os.lseek(self._number, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno in _NO_HOLES:
                    data, hole = at, min(end, os.fstat(self._number).st_size)
                elif error.errno == errno.ENXIO:  # no data from here on, or no file
                    data = hole = min(end, os.fstat(self._number).st_size)
                else:
                    self._failed(error)
                    return
            if data > at:
                yield Extent(at, min(data, end) - at, zero=True)
            at = min(data, end)
            if hole <= at:
                return
            yield Extent(at, min(hole, end) - at)
            at = min(hole, end)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; return the bytes read, fewer only where the file ends by now."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._number, [buffer[done:]], offset + done)
            except OSError as error:
                self._failed(error)
                break
            if count == 0:
                break
            done += count
        return done
