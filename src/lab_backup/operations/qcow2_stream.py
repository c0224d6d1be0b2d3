"""A disk of a backup as a qcow2 image that is made while it is read, from any byte to any byte, without a temporary file."""

from collections.abc import Iterator

from lab_backup.blocks import Buffer
from lab_backup.qcow2.layout import GuestRun, Layout
from lab_backup.repository.manifest import DiskEntry
from lab_backup.repository.reader import Reader
from lab_backup.units import MiB

_ZEROES = memoryview(bytes(1 * MiB))  # yielded again and again for gaps


def qcow2_layout(reader: Reader, entry: DiskEntry) -> Layout:
    """Return the layout of a disk's image; its `file_size` is the length of the whole stream."""
    return Layout(entry.size, reader.allocated(entry))


def qcow2_stream(
    reader: Reader, entry: DiskEntry, layout: Layout, start: int = 0, end: int | None = None
) -> Iterator[Buffer]:
    """Yield the image's bytes from `start` to `end` (None: its end). Each chunk is checked before it is yielded. Raises DamagedError."""
    stop = layout.file_size if end is None else min(end, layout.file_size)
    at = start
    first: GuestRun | None = None
    for part in layout.stream(start, stop):
        if isinstance(part, GuestRun):
            first = part
            break
        at += len(part)
        yield part
    if first is None:
        return
    for piece in reader.read_disk(entry, first.offset):
        place = layout.host_offset(piece.offset, len(piece.data))
        if place >= stop:
            break
        data = memoryview(piece.data)[max(at - place, 0) : stop - place]
        gap = max(place, at)
        yield from _zeroes(gap - at)
        yield data
        at = gap + len(data)
    yield from _zeroes(stop - at)


def _zeroes(count: int) -> Iterator[Buffer]:
    while count > 0:
        yield _ZEROES[:count]
        count -= len(_ZEROES)
