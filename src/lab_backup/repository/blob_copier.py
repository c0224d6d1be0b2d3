"""Copies blobs, chunks and tree nodes alike, from one repository into a backup of another that gives them the same ids."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from lab_backup.repository.cache import Location
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.errors import ChunkCorruptError, ChunkMissingError
from lab_backup.repository.pack import PackKind
from lab_backup.repository.reader import Reader
from lab_backup.repository.session import BackupSession
from lab_backup.repository.tree import MAX_NODE
from lab_backup.units import MiB

BATCH = 64 * MiB  # stored bytes that are looked for together, so that neighbours in a pack are read at once
BATCH_BLOBS = 65536
PART = 8 * MiB  # of a batch, the work of one thread at a time


class BlobCopier:
    """Copies what the target lacks. For one thread; a context manager that ends its own threads.

    Every blob is decrypted, decompressed and compared with its id on the way, and encrypted under the target's key; it is not compressed again.
    """

    def __init__(self, source: Reader, target: BackupSession) -> None:
        """Copy from `source` into the backup `target`."""
        self._source = source
        self._target = target
        self._batches: dict[PackKind, dict[bytes, Location]] = {kind: {} for kind in PackKind}
        self._size = 0
        self._pool = ThreadPoolExecutor(default_threads(), thread_name_prefix="copy")
        self.blobs = 0
        self.bytes_stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def want(self, kind: PackKind, blob_id: bytes, fits: Callable[[int], bool] = lambda raw: raw <= MAX_NODE) -> None:
        """Copy the blob, sooner or later, unless the target has it. `fits` says whether it can have so many bytes: a node any that a node has.

        Raises DamagedError where the source does not have it, or in another length: no reader would take that list. Also for blobs that were
        asked for before.
        """
        location = self._source.find(blob_id)
        if location is not None and not fits(location.entry.raw):
            raise ChunkCorruptError(
                f"blob {blob_id.hex()[:16]} has {location.entry.raw} bytes, which cannot be where the backup refers to it",
                hint="the backup was forged or damaged",
            )
        if not self._target.needs(blob_id):
            return
        if location is None:
            raise ChunkMissingError(
                f"blob {blob_id.hex()[:16]} is nowhere in the repository that is copied", hint="run: lab-backup verify"
            )
        self._batches[kind][blob_id] = location
        self._size += location.entry.stored
        if self._size >= BATCH or sum(map(len, self._batches.values())) >= BATCH_BLOBS:
            self.flush()

    def flush(self) -> None:
        """Copy all that was asked for. Raises DamagedError, and what reading and storing raise."""
        for kind, batch in self._batches.items():
            for stored, blobs in self._pool.map(lambda part, kind=kind: self._copy(kind, part), list(_parts(batch))):
                self.bytes_stored += stored
                self.blobs += blobs
            batch.clear()
        self._size = 0

    def _copy(self, kind: PackKind, part: dict[bytes, Location]) -> tuple[int, int]:
        stored = blobs = 0
        for blob in self._source.read_anywhere(part, kind):
            stored += self._target.store_blob(kind, blob)
            blobs += 1
        return stored, blobs


def _parts(batch: dict[bytes, Location]) -> Iterator[dict[bytes, Location]]:
    """Cut a batch into parts of neighbours."""
    part: dict[bytes, Location] = {}
    size = 0
    for blob_id, location in sorted(batch.items(), key=lambda item: (item[1].pack, item[1].entry.offset)):
        part[blob_id] = location
        size += location.entry.stored
        if size >= PART:
            yield part
            part, size = {}, 0
    if part:
        yield part
