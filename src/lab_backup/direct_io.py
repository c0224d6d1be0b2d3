"""Large writes that go past the page cache (open(2), O_DIRECT), where the file system can do that.

A backup or restore writes gigabytes that nobody reads soon. Through the page cache they would push out what the host's guests use, and
where memory is short or virtual, finding a page for each 4 KiB takes longer than the disk does.
"""

import errno
import mmap
import os

from lab_backup.blocks import Buffer
from lab_backup.units import KiB

Memory = mmap.mmap | bytearray
"""A block of memory that can be written to; only the first kind is aligned for direct writes."""

ALIGNMENT = 4 * KiB  # of offsets, lengths and buffers: enough for every disk
SMALLEST = 256 * KiB  # below it the page cache, which gathers writes, is faster


def aligned_buffer(size: int) -> mmap.mmap:
    """Return `size` bytes of zeroed memory of this process alone that direct writes accept."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def open_direct(number: int) -> int | None:
    """Return a second descriptor for the open file `number` that writes directly; None where that cannot be. The caller closes it."""
    try:
        return os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def write_at(number: int, direct: int | None, offset: int, data: Buffer) -> None:
    """Write all of `data` at `offset`: by `direct` what it accepts, the rest by `number`. Both are the same file. Raises OSError.

    Only an fsync makes it durable, as with any write.
    """
    rest = memoryview(data).cast("B")
    if direct is not None and offset % ALIGNMENT == 0 and len(rest) >= SMALLEST:
        written = _write_directly(direct, offset, rest[: len(rest) // ALIGNMENT * ALIGNMENT])
        offset, rest = offset + written, rest[written:]
    while rest:
        written = os.pwrite(number, rest, offset)
        offset, rest = offset + written, rest[written:]


def _write_directly(direct: int, offset: int, data: memoryview) -> int:
    """Return how much of the beginning of `data` was written; less than all where the kernel does not take it directly."""
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(direct, data[done:], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break
    return done
