"""Raw images: what is in the file or on the device is what is on the disk."""

import errno
import os
from collections.abc import Iterator

from lab_backup.extent import Extent
from lab_backup.sources.image.errors import ImageChangedError, ImageReadError
from lab_backup.sources.image.file import ImageFile


class RawReader:
    """A `BlockReader` over an open file or device, which it closes at the end."""

    def __init__(self, image: ImageFile) -> None:
        """Take over `image`."""
        self._image = image
        self._readers = len(os.sched_getaffinity(0))
        os.posix_fadvise(image.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._image.size

    @property
    def readers(self) -> int:
        """One thread per processor that this process may use."""
        return self._readers

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset`."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._image.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise ImageReadError(
                    f"reading image {self._image.path} at byte {offset + done} failed: {error.strerror}",
                    hint="check the kernel's log (dmesg) and the health of the storage",
                ) from error
            if count == 0:
                raise ImageChangedError(
                    f"image {self._image.path} ended at byte {offset + done} although it had {self.size} bytes",
                    hint="make sure that nothing resizes it, then back it up again",
                )
            done += count

    def extents(self) -> Iterator[Extent]:
        """Return data and holes as the file system knows them; everything on a device is data."""
        at = 0
        while at < self.size:
            data = self._seek(at, os.SEEK_DATA)
            if data > at:
                yield Extent(at, data - at, zero=True)
            if data < self.size:
                hole = self._seek(data, os.SEEK_HOLE)
                yield Extent(data, hole - data)
                at = hole
            else:
                at = data

    def _seek(self, offset: int, whence: int) -> int:
        """Return where the next data or hole begins, at most the size; progress is certain where `whence` is a hole."""
        try:
            found = os.lseek(self._image.fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing of that kind up to the end
                return self.size
            if error.errno == errno.EINVAL:  # it does not know holes: all is data
                return offset if whence == os.SEEK_DATA else self.size
            raise ImageReadError(f"image {self._image.path} cannot be mapped: {error.strerror}") from error
        if whence == os.SEEK_HOLE and found <= offset:  # a hole was punched after the data was found
            return self.size
        return min(found, self.size)

    def close(self) -> None:
        """Close the file."""
        self._image.close()
