"""Sorts the places of millions of blobs by id in bounded memory, on disk where they are many.

An index that is filled in the order of its keys writes each page once, whatever its size; in any other order it would write almost every page for
almost every blob, and keep them in memory until then.
"""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from lab_backup.repository.pack import ENTRY, ID
from lab_backup.units import MiB

_OWNER = struct.Struct(">I")
ROW = ENTRY.size + _OWNER.size
BUCKETS = 64  # by the first six bits of the id; ids are random, so they fill evenly
FEW = 8192  # rows that make one group of their own
IN_MEMORY = 8 * MiB  # rows kept before they go to disk


class RowSpool:
    """Rows on their way into an index: blob id, number of the pack, place in it. A context manager that leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        """Begin empty; what does not fit into memory goes to unnamed files in `directory`."""
        self._directory = directory
        self._held = [bytearray() for _ in range(BUCKETS)]
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()
        self._in_memory = 0
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def add(self, owner: int, table: bytes) -> None:
        """Take in a pack's table; `owner` is a number that stands for the pack."""
        held, mark = self._held, _OWNER.pack(owner)
        for at in range(0, len(table), ENTRY.size):
            row = table[at : at + ENTRY.size]
            held[row[0] >> 2] += row[:ID] + mark + row[ID:]
        rows = len(table) // ENTRY.size
        self.count += rows
        self._in_memory += rows * ROW
        if self._in_memory > IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if not self._files:
            for _ in range(BUCKETS):
                opened = self._open.enter_context(tempfile.TemporaryFile(dir=self._directory))  # noqa: SIM115  the stack closes it
                self._files.append(opened)
        for rows, file in zip(self._held, self._files, strict=True):
            file.write(rows)
            rows.clear()
        self._in_memory = 0

    def groups(self) -> Iterator[Iterator[tuple[bytes, int, bytes]]]:
        """Yield all rows (blob id, owner, place) in the order of ids, in groups that belong into one transaction each. Call it once."""
        if self.count <= FEW:
            yield (row for bucket in range(BUCKETS) for row in self._sorted(bucket))
            return
        for bucket in range(BUCKETS):
            yield self._sorted(bucket)

    def _sorted(self, bucket: int) -> Iterator[tuple[bytes, int, bytes]]:
        data = bytes(self._held[bucket])
        self._held[bucket].clear()
        if self._files:
            self._files[bucket].seek(0)
            data = self._files[bucket].read() + data
        rows = sorted(data[at : at + ROW] for at in range(0, len(data), ROW))
        for row in rows:
            yield row[:ID], _OWNER.unpack_from(row, ID)[0], row[ID + _OWNER.size :]
