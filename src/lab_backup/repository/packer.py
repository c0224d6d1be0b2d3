"""The way of blobs into the storage: open packs in memory, uploads in the background, index objects every few packs.

Memory is a fixed number of buffers, whatever is stored. A blob counts as known to later writers only after its pack and an index object that
names it are durable.
"""

import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from lab_backup.blocks import Buffer
from lab_backup.direct_io import Memory, aligned_buffer
from lab_backup.repository import index
from lab_backup.repository.codec import Compressor, compressor
from lab_backup.repository.envelope import Kind
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import (
    ENTRY,
    HEADER_SIZE,
    ID,
    TAG,
    TARGET_SIZE,
    TRAILER,
    Entry,
    FinishedPack,
    PackBuilder,
    PackKind,
)
from lab_backup.repository.repository import INDEX, Repository

UPLOADS = 2  # packs on their way at once; with the two open ones, four buffers of 32 MiB
PACKS_PER_INDEX = 8  # how much work a crash can lose: 256 MiB
MAX_BLOBS = 16384  # a pack of tiny blobs ends here, so that its table stays below 1 MiB


class Packer:
    """Stores blobs that the repository does not have. Thread-safe; a context manager that ends its threads."""

    def __init__(self, repository: Repository, *, compression: str | None = None, pack_size: int = TARGET_SIZE) -> None:
        """Take new blobs for `repository`, compressed as `compression` says (by default as the repository does)."""
        self._repository = repository
        self.compress: Compressor = compressor(compression or repository.config.compression)
        self._pack_size = pack_size
        self._buffer_size = (
            HEADER_SIZE
            + max(pack_size, repository.config.chunk_size + TAG)
            + MAX_BLOBS * ENTRY.size
            + TAG
            + TRAILER.size
        )
        self._lock = threading.Lock()
        self._open: dict[PackKind, PackBuilder] = {}
        self._pending: set[bytes] = set()
        self._buffers = threading.BoundedSemaphore(2 + UPLOADS)
        self._free: list[Memory] = []
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._uploads: set[Future[None]] = set()
        self._unindexed: list[IndexedPack] = []
        self._index_lock = threading.Lock()
        self._failure: BaseException | None = None
        self.bytes_uploaded = 0
        self.blobs = 0
        self.packs: set[int] = set()  # numbers of the packs that were made here
        self.indexes: set[str] = set()  # paths of the index objects that name them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is on its way and end the threads. Blobs not flushed are lost, as garbage."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._free.clear()

    def claim(self, blob_id: bytes) -> bool:
        """Return whether the caller is to store this blob; False where another thread does, or did lately."""
        with self._lock:
            if blob_id in self._pending:
                return False
            self._pending.add(blob_id)
            return True

    def store(self, kind: PackKind, blob_id: bytes, data: Buffer) -> int:
        """Compress, encrypt and store a claimed blob; return the bytes that it takes. Blocks while all buffers are full.

        Raises what an earlier upload raised.
        """
        codec, packed = self.compress(data)
        return self._put(kind, blob_id, codec, len(data), packed)

    def store_packed(self, kind: PackKind, entry: Entry, packed: Buffer) -> int:
        """Store a claimed blob that was read from another pack, where `entry` describes it, without compressing it again."""
        return self._put(kind, entry.id, entry.codec, entry.raw, packed)

    def _put(self, kind: PackKind, blob_id: bytes, codec: int, raw: int, packed: Buffer) -> int:
        stored = len(packed) + TAG
        with self._lock:
            self._raise_failure()
            builder = self._open.get(kind)
            offset = (
                None if builder is None or builder.count >= MAX_BLOBS else builder.reserve(blob_id, stored, raw, codec)
            )
            if builder is None or offset is None:
                if builder is not None:
                    self._retire(kind)
                builder = self._begin(kind)
                offset = builder.reserve(blob_id, stored, raw, codec)
            self.blobs += 1
        if offset is None:
            raise AssertionError
        if builder.put(offset, blob_id, raw, codec, packed):
            self._submit(builder)
        return stored

    def _begin(self, kind: PackKind) -> PackBuilder:
        # The uploads that free a buffer take no lock of ours, so waiting here with the lock held cannot hang.
        while not self._buffers.acquire(timeout=0.2):
            self._raise_failure()
        buffer = self._free.pop() if self._free else aligned_buffer(self._buffer_size)
        repository = self._repository
        builder = PackBuilder(kind, repository.id, repository.wrapping_key(kind), buffer, self._pack_size)
        self._open[kind] = builder
        return builder

    def _retire(self, kind: PackKind) -> None:
        builder = self._open.pop(kind)
        if builder.close():
            self._submit(builder)

    def _submit(self, builder: PackBuilder) -> None:
        future = self._pool.submit(self._upload, builder)
        self._uploads.add(future)
        future.add_done_callback(self._uploads.discard)

    def _upload(self, builder: PackBuilder) -> None:
        try:
            finished = builder.finish()
            try:
                self._repository.storage.upload(finished.info.path, finished.data)
            finally:
                finished.data.release()
                self._free.append(builder.take_buffer())
                self._buffers.release()
            self._note(finished)
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that stores next
            self._failure = self._failure or error

    def _note(self, finished: FinishedPack) -> None:
        with self._index_lock:
            self.bytes_uploaded += finished.info.size
            self._unindexed.append(IndexedPack(finished.info, finished.table))
            if len(self._unindexed) >= PACKS_PER_INDEX:
                self._write_index()

    def _write_index(self) -> None:
        packs, self._unindexed = self._unindexed, []
        if not packs:
            return
        path = f"{INDEX}/{secrets.token_hex(16)}"
        self.bytes_uploaded += self._repository.put_object(Kind.INDEX, path, index.encode(packs))
        self.indexes.add(path)
        cache = self._repository.cache
        cache.add(path, packs)
        for info, table in packs:
            number = cache.pack_number(info.id)
            if number is not None:
                self.packs.add(number)
            # From here on the index answers for these blobs.
            self._pending.difference_update(table[at : at + ID] for at in range(0, len(table), ENTRY.size))

    def index_uploaded(self) -> None:
        """Make what is in the storage already findable. May be called while others store."""
        with self._index_lock:
            self._write_index()

    def flush(self) -> None:
        """Make all that was stored durable and findable. Call it when no thread is storing. Raises what an upload raised."""
        with self._lock:
            for kind in list(self._open):
                self._retire(kind)
        for future in list(self._uploads):
            future.result()
        self._raise_failure()
        self.index_uploaded()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
