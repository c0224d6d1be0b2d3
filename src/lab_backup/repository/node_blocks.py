"""Reads tree nodes: small, many, and side by side in their packs, so one request brings those around as well."""

import threading
from collections import OrderedDict
from concurrent.futures import Future

from lab_backup.storage.base import StorageBackend
from lab_backup.units import KiB

BLOCK = 256 * KiB  # more than a hundred nodes of 64 children
KEPT = 32  # blocks in memory: 8 MiB


class NodeBlocks:
    """Parts of packs of one storage, the latest of them kept in memory. Thread-safe."""

    def __init__(self, storage: StorageBackend) -> None:
        """Read from `storage`. Packs never change, so what was read stays true."""
        self._storage = storage
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of the object from `offset`, fewer where it ends before. Raises what the storage raises."""
        first, last = offset // BLOCK, (offset + max(length, 1) - 1) // BLOCK
        data = b"".join(self._block(path, number) for number in range(first, last + 1))
        start = offset - first * BLOCK
        return data[start : start + length]

    def forget(self, path: str, offset: int, length: int) -> None:
        """Read that place anew the next time: what came was wrong, perhaps only on its way."""
        with self._lock:
            for number in range(offset // BLOCK, (offset + length) // BLOCK + 1):
                self._blocks.pop((path, number), None)

    def _block(self, path: str, number: int) -> bytes:
        key = path, number
        with self._lock:
            known = self._blocks.get(key)
            future: Future[bytes] = known or Future()
            self._blocks[key] = future
            self._blocks.move_to_end(key)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        if known is None:
            try:
                future.set_result(self._storage.read(path, number * BLOCK, BLOCK))
            except BaseException as error:
                with self._lock:
                    if self._blocks.get(key) is future:
                        del self._blocks[key]
                future.set_exception(error)
                raise
        return future.result()
