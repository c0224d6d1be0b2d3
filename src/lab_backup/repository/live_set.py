"""A set of blob ids too large for memory, each with the best place where it is stored. On disk (LMDB), for one walk, then gone."""

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import lmdb

from lab_backup.repository.errors import CacheError
from lab_backup.repository.pack import PACK_ID
from lab_backup.units import GiB

_PLACE = struct.Struct(f">B{PACK_ID}sI")  # rank, pack id, stored bytes; compares like the tuple
MAP_SIZE = 256 * GiB  # address space, not disk
CHANGES = 8192  # in one transaction, which keeps the pages that it touches in memory: 32 MiB


class Place(NamedTuple):
    """Where a blob lies. Of several places the smallest (rank, pack id) counts, so that all collectors choose alike."""

    rank: int
    pack: bytes
    stored: int


class LiveSet:
    """Ids that are referred to. For one thread; a context manager that leaves nothing behind."""

    def __init__(self, directory: Path) -> None:
        """Make an empty set in a temporary folder below `directory`."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = tempfile.mkdtemp(prefix="live-", dir=directory)
        self._env = lmdb.open(
            self._directory, map_size=MAP_SIZE, sync=False, metasync=False, lock=False, readahead=False
        )
        self._txn: Any = self._env.begin(write=True)
        self._changes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._txn.abort()
        self._env.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, blob_id: bytes) -> bool:
        """Add an id; return whether it was there already. Raises CacheError."""
        try:
            new = bool(self._txn.put(blob_id, b"", overwrite=False))
            if new:
                self._count()
        except lmdb.Error as error:
            raise self._failed(error) from error
        return not new

    def _count(self) -> None:
        self._changes += 1
        if self._changes % CHANGES == 0:
            self._txn.commit()
            self._txn = self._env.begin(write=True)

    def _failed(self, error: lmdb.Error) -> CacheError:
        return CacheError(
            f"{self._directory} cannot hold what is to be remembered: {error}",
            hint="make room there, or name another folder in LAB_BACKUP_CACHE",
        )

    def __contains__(self, blob_id: bytes) -> bool:
        return self._txn.get(blob_id) is not None

    def __len__(self) -> int:
        return int(self._txn.stat()["entries"])

    def offer(self, blob_id: bytes, place: Place) -> None:
        """Say that the blob lies at `place`; kept if the id is in the set and no better place is known. Raises CacheError."""
        known = self._txn.get(blob_id)
        if known is None:
            return
        packed = _PLACE.pack(*place)
        if known == b"" or packed < known:
            try:
                self._txn.put(blob_id, packed)
                self._count()
            except lmdb.Error as error:
                raise self._failed(error) from error

    def place(self, blob_id: bytes) -> Place | None:
        """Return the best place of an id; None where none was offered, or the id is not in the set."""
        packed = self._txn.get(blob_id)
        return Place(*_PLACE.unpack(packed)) if packed else None

    def places(self) -> Iterator[tuple[bytes, Place | None]]:
        """Yield every id with its best place, None where none was offered."""
        for blob_id, packed in self._txn.cursor():
            yield bytes(blob_id), Place(*_PLACE.unpack(packed)) if packed else None


def remove_leftovers(directory: Path) -> None:
    """Remove the folders of processes that were killed: those that nobody has touched for a day."""
    for path in directory.glob("live-*"):
        if path.is_dir() and path.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(path, ignore_errors=True)
