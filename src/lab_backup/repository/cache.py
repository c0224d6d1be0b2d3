"""The local copy of the index, mapped from disk (LMDB), so that ten million chunks take no memory of ours and a lookup takes microseconds.

Disposable: it is rebuilt from the repository's index objects whenever it is missing, and each `synchronise` brings it in line with the
objects that are there. A blob may have several places; one counts only while an index object that is still in the repository names its pack and no `removed` object does.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import lmdb

from lab_backup.repository.errors import CacheError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import PACK_ID, WRAPPED, Entry, PackInfo, PackKind
from lab_backup.repository.row_spool import RowSpool
from lab_backup.units import GiB

_NUMBER = struct.Struct(">I")
_PACK = struct.Struct(f"<16sBQ{WRAPPED}s")
_PLACE = struct.Struct("<IIIB")  # offset, stored, raw, codec: the tail of pack.ENTRY
# Address space, not memory or disk; the file grows with its content. 10 TiB in 128 KiB chunks need 5 GiB.
MAP_SIZE = 256 * GiB
LAYOUT = 2  # a cache of another layout is thrown away

_EPOCH = b"epoch"  # counts how often the places were thrown away

DEAD, USABLE, CONDEMNED = 0, 1, 2
# How good a place is: may be referred to, will be removed, has wrong bytes, is no more.
_SOUND, _PASSING, _DAMAGED, _GONE = range(4)
# What LMDB says of a file that no open call can mend.
_SPOILT = (
    lmdb.BadChecksumError,
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


class Location(NamedTuple):
    """Where a blob is stored."""

    pack: int
    entry: Entry


class _Databases(NamedTuple):
    """An open LMDB environment. LMDB allows one per file and process, so everybody in this process shares it."""

    env: Any
    meta: Any
    chunks: Any
    packs: Any
    pack_numbers: Any
    indexes: Any
    objects: Any


_open_files: dict[Path, tuple[_Databases, list["IndexCache"]]] = {}  # and who uses them
_open_files_lock = threading.Lock()


class IndexCache:
    """Chunk id → pack, offset, lengths. Thread-safe; several processes may share one directory.

    A pack keeps its number for as long as the directory exists: running writers and readers remember packs by it.
    """

    def __init__(self, directory: Path) -> None:
        """Open or make the cache in `directory`; a damaged one, or one of another layout, is made anew. Raises CacheError."""
        self.directory = directory
        self._change = threading.RLock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = directory.resolve()
        with _open_files_lock:
            if self._file not in _open_files:
                _open_files[self._file] = (self._open_or_renew(), [])
            databases, users = _open_files[self._file]
            users.append(self)
        self._env, self._meta, self._chunks, self._packs, self._pack_numbers, self._indexes, self._objects = databases
        with self._reading() as txn:
            count = self._count(txn)
        # One byte a pack: DEAD, USABLE or CONDEMNED (readable, but nothing new may refer to it).
        self.states = bytearray(count)
        self.damaged: set[tuple[int, bytes]] = set()
        self.orphans: set[int] = set()

    def _open_or_renew(self) -> _Databases:
        try:
            databases = self._open()
        except _SPOILT:
            databases = None
        except lmdb.Error as error:
            raise self._failed(error) from error
        if databases is None:
            self._wipe()
            try:
                databases = self._open()
            except lmdb.Error as error:
                raise self._failed(error) from error
        if databases is None:
            raise CacheError(f"the local copy of the index in {self.directory} cannot be made anew")
        return databases

    def _open(self) -> _Databases | None:
        """Return what is in the directory, or None where the file is of another layout or not whole."""
        env = lmdb.open(
            os.fspath(self.directory), map_size=MAP_SIZE, max_dbs=8, mode=0o600, readahead=False, max_readers=512
        )
        databases = None
        try:
            # Reading a page beyond the end of a mapped file would kill the process.
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if (self.directory / "data.mdb").stat().st_size >= needed and self._has_layout(env):
                env.reader_check()
                databases = _Databases(
                    env,
                    env.open_db(b"meta"),
                    env.open_db(b"chunks", dupsort=True, dupfixed=True),
                    *(env.open_db(name) for name in (b"packs", b"pack-numbers", b"indexes", b"objects")),
                )
        finally:
            if databases is None:
                env.close()
        return databases

    @staticmethod
    def _has_layout(env: Any) -> bool:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            layout = txn.get(b"layout", db=meta)
            if layout is None:
                layout = bytes([LAYOUT])
                txn.put(b"layout", layout, db=meta)
        return bool(layout == bytes([LAYOUT]))

    def _wipe(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            (self.directory / name).unlink(missing_ok=True)

    def _failed(self, error: lmdb.Error) -> CacheError:
        if isinstance(error, _SPOILT):
            self._wipe()
            return CacheError(
                f"the local copy of the index in {self.directory} is damaged; it was removed",
                hint="run the command again: the copy is made anew from the repository",
            )
        return CacheError(
            f"the local copy of the index in {self.directory} cannot be used: {error}",
            hint="make room there, or name another folder in LAB_BACKUP_CACHE",
        )

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self._env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except lmdb.Error as error:
            raise self._failed(error) from error

    def _get(self, key: bytes, database: Any) -> bytes | None:
        try:
            with self._env.begin(db=database) as txn:
                value: bytes | None = txn.get(key)
        except lmdb.Error as error:
            raise self._failed(error) from error
        return value

    def _count(self, txn: Any) -> int:
        cursor = txn.cursor(self._packs)
        return int(_NUMBER.unpack(cursor.key())[0]) + 1 if cursor.last() else 0

    def clear(self) -> None:
        """Forget all places; the next `synchronise` loads all index objects again. Packs keep their numbers and states."""
        with self._change, self._writing() as txn:
            for database in (self._chunks, self._indexes):
                txn.drop(database, delete=False)
            epoch = _NUMBER.unpack(txn.get(_EPOCH, _NUMBER.pack(0), db=self._meta))[0]
            txn.put(_EPOCH, _NUMBER.pack(epoch + 1), db=self._meta)

    def close(self) -> None:
        """Let go of the file; may be called several times."""
        with _open_files_lock:
            databases, users = _open_files.get(self._file, (None, []))
            if databases is None or self not in users:
                return
            users.remove(self)
            if not users:
                del _open_files[self._file]
                databases.env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- loading ---

    def indexes(self) -> set[str]:
        """Return the names of the index objects that were loaded."""
        with self._reading() as txn:
            return {key.decode() for key in txn.cursor(self._indexes).iternext(values=False)}

    def indexed(self) -> set[bytes]:
        """Return the ids of all packs that a loaded index object names."""
        with self._reading() as txn:
            return self._indexed(txn)

    def _indexed(self, txn: Any) -> set[bytes]:
        numbers = {key for _, row in txn.cursor(self._indexes) for (key,) in _NUMBER.iter_unpack(row)}
        return {bytes(txn.get(_NUMBER.pack(number), db=self._packs)[:PACK_ID]) for number in numbers}

    def load(self, objects: Iterable[tuple[str, Iterable[IndexedPack]]]) -> None:
        """Take in index objects (name, packs): many together are much faster than one by one. They are asked for one at a time.

        Packs that are new here count as dead until `set_states`. Where another process throws the cache away meanwhile, some are not
        taken in; `indexes` tells.
        """
        self._load(objects)

    def add(self, name: str, packs: Iterable[IndexedPack]) -> None:
        """Take in an index object of our own making; its packs are usable at once."""
        numbers = self._load([(name, packs)])
        with self._change:
            for number in numbers:
                if self.states[number] == DEAD:
                    self.states[number] = USABLE

    def load_orphans(self, packs: Iterable[IndexedPack]) -> None:
        """Take in packs that no index object names: they can be read, but nothing new may refer to them. Until the next `set_states`."""
        self.orphans = self._load([("", packs)])
        with self._change:
            for number in self.orphans:
                self.states[number] = CONDEMNED

    def _load(self, objects: Iterable[tuple[str, Iterable[IndexedPack]]]) -> set[int]:
        """Load as `load` says; without a name, the packs count as named by nobody. Returns their numbers."""
        with self._change, RowSpool(self.directory) as spool:
            with self._reading() as txn:
                whole, epoch = self._indexed(txn), txn.get(_EPOCH, db=self._meta)
            infos: dict[bytes, PackInfo] = {}
            owners: dict[bytes, int] = {}
            names: dict[str, list[bytes]] = {}
            for name, packs in objects:
                names[name] = [pack.info.id for pack in packs]
                for pack in packs:
                    if pack.info.id not in infos:
                        infos[pack.info.id] = pack.info
                        owners[pack.info.id] = len(owners)
                        # The places of a pack are all there before an object that names it is.
                        if pack.info.id not in whole:
                            spool.add(owners[pack.info.id], pack.table)
            with self._writing() as txn:
                numbers = {pack_id: self._number(txn, info) for pack_id, info in infos.items()}
                count = self._count(txn)
            prefixes = [_NUMBER.pack(number) for number in numbers.values()]
            for rows in spool.groups():
                with self._writing() as txn, txn.cursor(self._chunks) as cursor:
                    cursor.putmulti((blob_id, prefixes[owner] + place) for blob_id, owner, place in rows)
            with self._writing() as txn:
                if txn.get(_EPOCH, db=self._meta) == epoch:  # else what we put may be gone already
                    for name, pack_ids in names.items():
                        if name:
                            row = b"".join(_NUMBER.pack(numbers[pack_id]) for pack_id in pack_ids)
                            txn.put(name.encode(), row, db=self._indexes)
            # Another process may have added packs to this very cache since we looked.
            self.states.extend(bytes(max(0, count - len(self.states))))
            return set(numbers.values())

    def _number(self, txn: Any, info: PackInfo) -> int:
        known = txn.get(info.id, db=self._pack_numbers)
        if known is not None:
            return int(_NUMBER.unpack(known)[0])
        number = self._count(txn)
        key = _NUMBER.pack(number)
        txn.put(info.id, key, db=self._pack_numbers)
        txn.put(key, _PACK.pack(info.id, info.kind, info.size, info.wrapped), db=self._packs)
        return number

    def forget(self, names: Iterable[str]) -> None:
        """Drop index objects that are no longer in the repository. `set_states` then decides which packs died."""
        with self._change, self._writing() as txn:
            for name in names:
                txn.delete(name.encode(), db=self._indexes)

    def set_states(self, *, removed: Iterable[bytes], condemned: Iterable[bytes]) -> set[str]:
        """Work out each pack's state anew: alive if an index object names it, unless it was removed or condemned.

        Returns the names of the index objects that this was worked out from.
        """
        names = set()
        with self._change, self._reading() as txn:
            states = bytearray(self._count(txn))
            for name, numbers in txn.cursor(self._indexes):
                names.add(name.decode())
                for (number,) in _NUMBER.iter_unpack(numbers):
                    states[number] = USABLE
            for pack_ids, state in ((condemned, CONDEMNED), (removed, DEAD)):
                for pack_id in pack_ids:
                    key = txn.get(pack_id, db=self._pack_numbers)
                    if key is not None and states[_NUMBER.unpack(key)[0]]:
                        states[_NUMBER.unpack(key)[0]] = state
            self.states = states
            self.orphans = set()
        return names

    # --- lookups ---

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[bytes], bytes | None]]:
        """Return a function from blob id to one of its raw places, or None; the fastest way to look many up at once."""
        try:
            with self._env.begin(db=self._chunks) as txn:
                yield txn.get
        except lmdb.Error as error:
            raise self._failed(error) from error

    def usable(self, blob_id: bytes, place: bytes | None) -> int | None:
        """Return the number of a pack that new backups may refer to for this blob, or None: store it again.

        `place` is what `snapshot` gave for it.
        """
        if place is None:
            return None
        number: int = _NUMBER.unpack_from(place)[0]
        if self._rank(number, blob_id) == _SOUND:
            return number
        best = next(iter(self.places(blob_id)), None)
        return best.pack if best is not None and self._rank(best.pack, blob_id) == _SOUND else None

    def _rank(self, number: int, blob_id: bytes) -> int:
        # A pack that another process added meanwhile counts as unknown, so as dead.
        state = self.states[number] if number < len(self.states) else DEAD
        if state == DEAD:
            return _GONE
        if self.damaged and (number, blob_id) in self.damaged:
            return _DAMAGED
        return _SOUND if state == USABLE else _PASSING

    def locate(self, blob_id: bytes) -> Location | None:
        """Return the best place where the blob can be read, or None."""
        place = self._get(blob_id, self._chunks)
        if place is None:
            return None
        number: int = _NUMBER.unpack_from(place)[0]
        if self._rank(number, blob_id) == _SOUND:
            return Location(number, Entry(blob_id, *_PLACE.unpack_from(place, _NUMBER.size)))
        return next(iter(self.places(blob_id)), None)

    def places(self, blob_id: bytes) -> list[Location]:
        """Return every place where the blob can be read: sound ones first, then condemned, then damaged ones."""
        with self._reading() as txn, txn.cursor(self._chunks) as cursor:
            found = list(cursor.iternext_dup()) if cursor.set_key(blob_id) else []
        numbers = [int(_NUMBER.unpack_from(place)[0]) for place in found]
        ranked = sorted((self._rank(number, blob_id), at) for at, number in enumerate(numbers))
        return [
            Location(numbers[at], Entry(blob_id, *_PLACE.unpack_from(found[at], _NUMBER.size)))
            for rank, at in ranked
            if rank != _GONE
        ]

    def pack(self, number: int) -> PackInfo:
        """Return what is known of the pack `number`."""
        row = self._get(_NUMBER.pack(number), self._packs)
        if row is None:
            raise KeyError(number)
        pack_id, kind, size, wrapped = _PACK.unpack(row)
        return PackInfo(pack_id, PackKind(kind), size, wrapped)

    def pack_number(self, pack_id: bytes) -> int | None:
        """Return the number of the pack, or None where no index object named it yet."""
        key = self._get(pack_id, self._pack_numbers)
        return None if key is None else int(_NUMBER.unpack(key)[0])

    def packs(self) -> Iterator[tuple[int, PackInfo]]:
        """Return every pack that is not dead."""
        for number, state in enumerate(self.states):
            if state != DEAD:
                yield number, self.pack(number)

    def count(self) -> int:
        """Return how many places of blobs the cache knows, dead ones included."""
        with self._reading() as txn:
            return int(txn.stat(self._chunks)["entries"])

    # --- small sealed objects (manifests, marks), kept as they are stored ---

    def get_object(self, path: str) -> bytes | None:
        """Return the sealed object as it was last seen, or None. The caller unseals and so verifies it."""
        return self._get(path.encode(), self._objects)

    def put_objects(self, objects: dict[str, bytes]) -> None:
        """Remember sealed, immutable objects."""
        if objects:
            with self._writing() as txn:
                for path, data in objects.items():
                    txn.put(path.encode(), data, db=self._objects)

    def drop_objects(self, prefix: str, present: set[str]) -> None:
        """Forget the objects below `prefix` that are not in `present`."""
        start = prefix.encode()
        with self._writing() as txn:
            cursor = txn.cursor(self._objects)
            gone = []
            if cursor.set_range(start):
                for key in cursor.iternext(values=False):
                    if not key.startswith(start):
                        break
                    if key.decode() not in present:
                        gone.append(bytes(key))
            for key in gone:
                txn.delete(key, db=self._objects)
