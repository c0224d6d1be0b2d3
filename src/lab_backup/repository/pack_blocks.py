"""Reads packs by blocks: what is small, or lies mixed with its neighbours, comes with all that is around it by one request."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from lab_backup.storage.base import StorageBackend


class PackBlocks:
    """Parts of packs of one storage, the latest of them kept in memory. Thread-safe."""

    def __init__(self, storage: StorageBackend, *, size: int, kept: int) -> None:
        """Read from `storage` in blocks of `size` bytes, of which `kept` stay. Packs never change, so what was read stays true."""
        self._storage = storage
        self.size = size
        self._kept = kept
        self._lock = threading.RLock()  # a pool without threads does the work at once
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of the object from `offset`, fewer where it ends before. Raises what the storage raises."""
        data = b"".join(self.get(path, number).result() for number in self.numbers(offset, length))
        start = offset % self.size
        return data[start : start + length]

    def numbers(self, offset: int, length: int) -> range:
        """Return which blocks hold `length` bytes from `offset`."""
        return range(offset // self.size, (offset + max(length, 1) - 1) // self.size + 1)

    def get(
        self, path: str, number: int, submit: Callable[[Callable[[], bytes]], Future[bytes]] | None = None
    ) -> Future[bytes]:
        """Return the block, perhaps still on its way. Where it must be read, `submit` is given the work, else it is done at once.

        Whoever cancels what was submitted cancels the block for all that wait for it.
        """
        key = path, number
        with self._lock:
            known = self._blocks.get(key)
            future = known or (submit(lambda: self._read(key)) if submit is not None else Future())
            self._blocks[key] = future
            self._blocks.move_to_end(key)
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        if known is None and submit is None:
            try:
                future.set_result(self._read(key))
            except Exception as error:  # noqa: BLE001  it is raised in all that wait
                future.set_exception(error)
            except BaseException:
                future.cancel()
                raise
        return future

    def _read(self, key: tuple[str, int]) -> bytes:
        path, number = key
        try:
            return self._storage.read(path, number * self.size, self.size)
        except BaseException:
            with self._lock:
                self._blocks.pop(key, None)
            raise

    def forget(self, path: str, offset: int, length: int) -> None:
        """Read that place anew the next time: what came was wrong, perhaps only on its way."""
        with self._lock:
            for number in self.numbers(offset, length):
                self._blocks.pop((path, number), None)
