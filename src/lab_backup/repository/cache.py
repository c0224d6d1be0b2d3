"""The local copy of the index, mapped from disk (LMDB), so that ten million chunks take no memory of ours and a lookup takes microseconds.

Disposable: it is rebuilt from the repository's index objects whenever it is missing, and each `synchronise` brings it in line with the
objects that are there. An entry counts only while an index object that is still in the repository names its pack and no `removed` object does.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import lmdb

from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import ENTRY, ID, WRAPPED, Entry, PackInfo, PackKind
from lab_backup.units import GiB

_NUMBER = struct.Struct(">I")
_PACK = struct.Struct(f"<16sBQ{WRAPPED}s")
_PLACE = struct.Struct("<IIIB")  # offset, stored, raw, codec: the tail of pack.ENTRY
# Address space, not memory or disk; the file grows with its content. 10 TiB in 128 KiB chunks need 5 GiB.
MAP_SIZE = 256 * GiB
LAYOUT = 1  # a cache of another layout is thrown away

DEAD, USABLE, CONDEMNED = 0, 1, 2


class Location(NamedTuple):
    """Where a blob is stored."""

    pack: int
    entry: Entry


class IndexCache:
    """Chunk id → pack, offset, lengths. Thread-safe; several processes may share one directory."""

    def __init__(self, directory: Path) -> None:
        """Open or make the cache in `directory`. A damaged one, or one of another layout, is made anew."""
        self.directory = directory
        self._change = threading.RLock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._open()
        except lmdb.Error:
            self._wipe()
            self._open()

    def _open(self) -> None:
        self._env = lmdb.open(
            os.fspath(self.directory), map_size=MAP_SIZE, max_dbs=8, mode=0o600, readahead=False, max_readers=512
        )
        meta = self._env.open_db(b"meta")
        self._chunks = self._env.open_db(b"chunks")
        self._packs = self._env.open_db(b"packs")
        self._pack_numbers = self._env.open_db(b"pack-numbers")
        self._indexes = self._env.open_db(b"indexes")
        self._objects = self._env.open_db(b"objects")
        with self._env.begin(write=True) as txn:
            layout = txn.get(b"layout", db=meta)
            if layout is None:
                txn.put(b"layout", bytes([LAYOUT]), db=meta)
            elif layout != bytes([LAYOUT]):
                raise lmdb.Error("another layout")
            count = self._count(txn)
        self._env.reader_check()
        # One byte a pack: DEAD, USABLE or CONDEMNED (readable, but nothing new may refer to it).
        self.states = bytearray(count)
        self.damaged: set[tuple[int, bytes]] = set()

    def _count(self, txn: Any) -> int:
        cursor = txn.cursor(self._packs)
        return int(_NUMBER.unpack(cursor.key())[0]) + 1 if cursor.last() else 0

    def _wipe(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            (self.directory / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything; the next `synchronise` loads all index objects again."""
        with self._env.begin(write=True) as txn:
            for database in (self._chunks, self._packs, self._pack_numbers, self._indexes):
                txn.drop(database, delete=False)
        self.states = bytearray()
        self.damaged = set()

    def close(self) -> None:
        """Let go of the file; may be called several times."""
        self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- loading ---

    def indexes(self) -> set[str]:
        """Return the names of the index objects that were loaded."""
        with self._env.begin() as txn:
            return {key.decode() for key in txn.cursor(self._indexes).iternext(values=False)}

    def load(self, objects: Iterable[tuple[str, Iterable[IndexedPack]]]) -> None:
        """Take in index objects (name, packs), all in one transaction: a few together are much faster than one by one."""
        with self._change, self._env.begin(write=True) as txn:
            # Another process may have added packs to this very cache since we looked.
            self.states.extend(bytes(self._count(txn) - len(self.states)))
            fresh: dict[int, bytes] = {}  # pack number → its table
            for name, packs in objects:
                numbers = [self._number(txn, pack, fresh) for pack in packs]
                txn.put(name.encode(), b"".join(map(_NUMBER.pack, numbers)), db=self._indexes)
            # In the order of ids: pages are then filled one after the other.
            rows = sorted(
                (table[at : at + ENTRY.size], number)
                for number, table in fresh.items()
                for at in range(0, len(table), ENTRY.size)
            )
            for row, number in rows:
                self._put_place(txn, row, number)
        for number in fresh:
            self.states[number] = USABLE

    def _number(self, txn: Any, pack: IndexedPack, fresh: dict[int, bytes]) -> int:
        """Return the pack's number; where its table is not in the cache yet, put it into `fresh`."""
        info, table = pack
        known = txn.get(info.id, db=self._pack_numbers)
        if known is not None:
            number = int(_NUMBER.unpack(known)[0])
            if self.states[number] == DEAD:
                fresh[number] = table
            return number
        number = len(self.states)
        self.states.append(DEAD)
        key = _NUMBER.pack(number)
        txn.put(info.id, key, db=self._pack_numbers)
        txn.put(key, _PACK.pack(info.id, info.kind, info.size, info.wrapped), db=self._packs)
        fresh[number] = table
        return number

    def _put_place(self, txn: Any, row: bytes, number: int) -> None:
        """Remember a blob's place, unless a place is known that is as good."""
        blob_id, place = row[:ID], _NUMBER.pack(number) + row[ID:]
        if txn.put(blob_id, place, db=self._chunks, overwrite=False):
            return
        held = _NUMBER.unpack_from(txn.get(blob_id, db=self._chunks))[0]
        if self._state(held) != USABLE or (held, blob_id) in self.damaged:
            txn.put(blob_id, place, db=self._chunks)

    def forget(self, names: Iterable[str]) -> None:
        """Drop index objects that are no longer in the repository. `set_states` then decides which packs died."""
        with self._change, self._env.begin(write=True) as txn:
            for name in names:
                txn.delete(name.encode(), db=self._indexes)

    def set_states(self, *, removed: Iterable[bytes], condemned: Iterable[bytes]) -> None:
        """Work out each pack's state anew: alive if an index object names it, unless it was removed or condemned."""
        with self._change, self._env.begin() as txn:
            states = bytearray(self._count(txn))
            for _, numbers in txn.cursor(self._indexes):
                for (number,) in _NUMBER.iter_unpack(numbers):
                    states[number] = USABLE
            for pack_ids, state in ((condemned, CONDEMNED), (removed, DEAD)):
                for pack_id in pack_ids:
                    key = txn.get(pack_id, db=self._pack_numbers)
                    if key is not None and states[_NUMBER.unpack(key)[0]]:
                        states[_NUMBER.unpack(key)[0]] = state
            self.states = states

    # --- lookups ---

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[bytes], bytes | None]]:
        """Return a function from blob id to its raw place, or None; the fastest way to look many up at once."""
        with self._env.begin(db=self._chunks) as txn:
            yield txn.get

    def usable(self, blob_id: bytes, place: bytes | None) -> int | None:
        """Return the number of the pack that new backups may refer to for this blob, or None: store it again."""
        if place is None:
            return None
        number: int = _NUMBER.unpack_from(place)[0]
        if self._state(number) != USABLE or (self.damaged and (number, blob_id) in self.damaged):
            return None
        return number

    def _state(self, number: int) -> int:
        """Return the pack's state; one that another process added meanwhile counts as unknown, so as dead."""
        return self.states[number] if number < len(self.states) else DEAD

    def locate(self, blob_id: bytes) -> Location | None:
        """Return where the blob can be read, or None."""
        with self._env.begin(db=self._chunks) as txn:
            place = txn.get(blob_id)
        return self.location(blob_id, place)

    def location(self, blob_id: bytes, place: bytes | None) -> Location | None:
        """Return the location in `place`, or None where its pack is gone."""
        if place is None:
            return None
        number: int = _NUMBER.unpack_from(place)[0]
        if self._state(number) == DEAD:
            return None
        return Location(number, Entry(blob_id, *_PLACE.unpack_from(place, _NUMBER.size)))

    def pack(self, number: int) -> PackInfo:
        """Return what is known of the pack `number`."""
        with self._env.begin(db=self._packs) as txn:
            row = txn.get(_NUMBER.pack(number))
        if row is None:
            raise KeyError(number)
        pack_id, kind, size, wrapped = _PACK.unpack(row)
        return PackInfo(pack_id, PackKind(kind), size, wrapped)

    def pack_number(self, pack_id: bytes) -> int | None:
        """Return the number of the pack, or None where no index object named it yet."""
        with self._env.begin(db=self._pack_numbers) as txn:
            key = txn.get(pack_id)
        return None if key is None else int(_NUMBER.unpack(key)[0])

    def packs(self) -> Iterator[tuple[int, PackInfo]]:
        """Return every pack that is not dead."""
        for number, state in enumerate(self.states):
            if state != DEAD:
                yield number, self.pack(number)

    def count(self) -> int:
        """Return how many blobs the cache knows, dead ones included."""
        with self._env.begin() as txn:
            return int(txn.stat(self._chunks)["entries"])

    # --- small sealed objects (manifests, marks), kept as they are stored ---

    def get_object(self, path: str) -> bytes | None:
        """Return the sealed object as it was last seen, or None. The caller unseals and so verifies it."""
        with self._env.begin(db=self._objects) as txn:
            value: bytes | None = txn.get(path.encode())
        return value

    def put_objects(self, objects: dict[str, bytes]) -> None:
        """Remember sealed, immutable objects."""
        if objects:
            with self._env.begin(write=True, db=self._objects) as txn:
                for path, data in objects.items():
                    txn.put(path.encode(), data)

    def drop_objects(self, prefix: str, present: set[str]) -> None:
        """Forget the objects below `prefix` that are not in `present`."""
        start = prefix.encode()
        with self._env.begin(write=True, db=self._objects) as txn:
            cursor = txn.cursor()
            gone = []
            if cursor.set_range(start):
                for key in cursor.iternext(values=False):
                    if not key.startswith(start):
                        break
                    if key.decode() not in present:
                        gone.append(bytes(key))
            for key in gone:
                txn.delete(key)
