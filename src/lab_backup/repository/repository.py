"""A repository: one storage, its keys, and the local copy of its index."""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Self, TypeVar

import msgspec
from blake3 import blake3

from lab_backup.repository import index
from lab_backup.repository.cache import CONDEMNED as CONDEMNED_PACK
from lab_backup.repository.cache import USABLE, IndexCache
from lab_backup.repository.config import Config
from lab_backup.repository.envelope import Kind, seal, unseal
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.head import read_head
from lab_backup.repository.keys import RepositoryKeys, Secret
from lab_backup.repository.one_object import read_object
from lab_backup.repository.pack import PACK_ID, PackCipher, PackInfo, PackKind, unwrap
from lab_backup.repository.pack_table import read_table
from lab_backup.repository.untrusted_json import Moment, parse
from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectInfo,
    ObjectLockedError,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
)
from lab_backup.units import MiB

T = TypeVar("T")

INDEX = "index"
CONDEMNED = "condemned"
REMOVED = "removed"
DAMAGED = "damaged"
LEASES = "leases"
RESERVE = "reserve"
# Given up when the storage is full, so that `delete` and `gc` can still write what they must. Random, lest it be compressed.
RESERVE_SIZE = 4 * MiB
DAMAGE_PART = 200_000  # entries in one record of damage: 22 MiB
NOWHERE = "0" * 32  # the pack of a blob that is in none
SYNCHRONISATIONS = 3  # an index object that vanishes between list and look takes one more
MAX_CIPHERS = 4096  # unwrapped pack keys kept: a few hundred bytes each


HexPack = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}\\Z")]
HexBlob = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


class PackList(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of `condemned` and `removed` objects: pack ids, hexadecimal.

    `surveyed` is the storage's time before the look that found them unused, ISO 8601. `instead_of` are condemned lists that could not be
    read: whatever they named that is garbage is in this list, or in another that can be read.
    """

    packs: list[HexPack]
    surveyed: Moment | None = None
    instead_of: list[str] = []

    @property
    def ids(self) -> set[bytes]:
        """The packs' ids."""
        return {bytes.fromhex(pack) for pack in self.packs}


class DamageList(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of `damaged` objects: packs that are gone, and (pack, blob) pairs whose bytes are wrong."""

    packs: list[HexPack]
    blobs: list[tuple[HexPack, HexBlob]]


class Repository:
    """An open repository. Thread-safe unless a method says otherwise."""

    def __init__(
        self,
        storage: StorageBackend,
        config: Config,
        keys: RepositoryKeys,
        cache: IndexCache,
        *,
        stale_configs: Iterable[str] = (),
    ) -> None:
        """Put an open repository together; `open_repository` is what callers want.

        `stale_configs` of the two objects that hold `config` are not what its seal, which was verified, says.
        """
        self.storage = storage
        self.config = config
        self.keys = keys
        self.cache = cache
        self._stale_configs = list(stale_configs)
        self._ciphers: dict[int, PackCipher] = {}
        self._synchronising = threading.RLock()
        self.unreadable: dict[str, DamagedError] = {}  # lists (condemned, removed, damaged) that could not be read
        self.replaced: set[str] = set()  # unreadable lists of condemned packs that another one stands in for
        self.has_damage = False  # whether any verification recorded damage, as of the last `synchronise`

    def close(self) -> None:
        """Let go of cache and storage; may be called several times."""
        self.cache.close()
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @cached_property
    def id(self) -> bytes:
        """The repository's id, 16 bytes."""
        return self.config.repository_id

    # --- ids ---

    def chunk_id(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the id of a chunk: BLAKE3 keyed with this repository's own key, so ids tell nothing to others."""
        return blake3(data, key=self.keys.chunk_id).digest()

    def node_id(self, data: bytes) -> bytes:
        """Return the id of a tree node."""
        return blake3(data, key=self.keys.node_id).digest()

    # --- sealed objects ---

    def seal(self, kind: Kind, path: str, payload: bytes) -> bytes:
        """Return the object to store under `path`."""
        return seal(payload, kind=kind, path=path, repository_id=self.id, key=self.keys.metadata)

    def unseal(self, kind: Kind, path: str, data: bytes) -> bytes:
        """Return the payload of an object that was read from `path`. Raises DamagedError."""
        return unseal(data, kind=kind, path=path, repository_id=self.id, key=self.keys.metadata)

    def put_object(self, kind: Kind, path: str, payload: bytes) -> int:
        """Store a new sealed object durably; return its stored size."""
        data = self.seal(kind, path, payload)
        self.storage.upload(path, data)
        return len(data)

    def get_object(self, kind: Kind, path: str) -> bytes:
        """Return the payload of the sealed object at `path`. Raises ObjectNotFoundError, DamagedError."""
        return self.unseal(kind, path, read_object(self.storage, path))

    def _lists(self, kind: Kind, prefix: str, form: type[T]) -> Iterator[tuple[ObjectInfo, T]]:
        """Yield the lists below `prefix` and what they hold. What cannot be read is put into `unreadable`: it must not keep anybody from restoring."""
        self.unreadable = {path: error for path, error in self.unreadable.items() if not path.startswith(f"{prefix}/")}
        infos = {info.path: info for info in self.storage.list(prefix)}
        for path, data in self._parallel(self._stored, infos):
            if data is not None:
                try:
                    yield infos[path], parse(self._opened(kind, path, data), form, path)
                except DamagedError as error:
                    self.unreadable[path] = error

    def _parallel(self, read: Callable[[str], T], paths: Iterable[str]) -> Iterator[tuple[str, T]]:
        wanted = list(paths)
        if len(wanted) <= 1:
            yield from ((path, read(path)) for path in wanted)
            return
        with ThreadPoolExecutor(self.storage.concurrency) as pool:
            yield from zip(wanted, pool.map(read, wanted), strict=True)

    def read_cached(self, kind: Kind, prefix: str, paths: set[str]) -> Iterator[tuple[str, bytes | DamagedError]]:
        """Yield path and payload of the immutable objects `paths` below `prefix`, from the local copy where it has them.

        An object that cannot be read yields its error in place of its payload; one that vanished meanwhile is left out.
        """
        fresh: dict[str, bytes] = {}
        missing = []
        for path in sorted(paths):
            stored = self.cache.get_object(path)
            if stored is None:
                missing.append(path)
                continue
            try:
                yield path, self.unseal(kind, path, stored)
            except DamagedError:
                missing.append(path)
        for path, data in self._parallel(self._stored, missing):
            if data is None:
                continue
            if isinstance(data, DamagedError):
                yield path, data
                continue
            try:
                yield path, self.unseal(kind, path, data)
                fresh[path] = data
            except DamagedError as error:
                yield path, error
        self.cache.put_objects(fresh)
        self.cache.drop_objects(f"{prefix}/", paths)

    def _stored(self, path: str) -> bytes | DamagedError | None:
        """Return an object as it is stored, None where there is none, and what is wrong where it alone cannot be read."""
        try:
            return read_object(self.storage, path)
        except ObjectNotFoundError:
            return None
        except DamagedError as error:
            return error

    def _opened(self, kind: Kind, path: str, stored: bytes | DamagedError) -> bytes:
        if isinstance(stored, DamagedError):
            raise stored
        return self.unseal(kind, path, stored)

    # --- index ---

    def synchronise(self, *, written: frozenset[str] = frozenset()) -> None:
        """Bring the local index in line with the repository; it names what the index objects `written` name even if no list shows them yet.

        The order matters (`docs/format/concurrency.md`): condemned lists, then removed lists, then index objects. A pack that is being
        collected meanwhile is then seen as condemned, or removed, or not at all; never as usable.
        """
        with self._synchronising:
            condemned = self.pack_list(Kind.CONDEMNED, CONDEMNED)
            removed = self.pack_list(Kind.REMOVED, REMOVED)
            damage = self.damage()
            for _ in range(SYNCHRONISATIONS):
                # What we have, before what is there: an index object that another thread of ours adds meanwhile is not forgotten.
                loaded = self.cache.indexes()
                present = {info.path for info in self.storage.list(INDEX)} | written
                # A list may lag behind what was just written; only a look by name tells that an object is gone.
                gone = {path for path, size in self.sizes(sorted(loaded - present)) if size is None}
                self.cache.forget(gone)
                if gone:
                    self._set_states(removed, condemned, damage)
                self._load(sorted(present - loaded))
                # Another process may have thrown this very cache away meanwhile, to load it anew.
                if present <= self._set_states(removed, condemned, damage):
                    break

    def _load(self, paths: list[str]) -> None:
        """Load index objects into the cache; damaged ones from the packs themselves."""
        damaged: list[str] = []
        if paths:
            self.cache.load(self._readable(paths, damaged))
        if damaged:
            rebuilt = self.rebuild(known=self.cache.indexed())
            self.cache.load((path, rebuilt) for path in damaged)

    def _readable(self, paths: list[str], damaged: list[str]) -> Iterator[tuple[str, list[index.IndexedPack]]]:
        """Yield path and packs of index objects, a few read ahead; note the `damaged` ones."""
        step = self.storage.concurrency
        for at in range(0, len(paths), step):
            for path, packs in self._parallel(self._index_or_damage, paths[at : at + step]):
                if isinstance(packs, DamagedError):
                    damaged.append(path)
                elif packs is not None:
                    yield path, packs

    def _index_or_damage(self, path: str) -> list[index.IndexedPack] | DamagedError | None:
        """Return an index object's packs, None where it vanished."""
        stored = self._stored(path)
        if stored is None:
            return None
        try:
            return index.decode(self._opened(Kind.INDEX, path, stored), path)
        except DamagedError as error:
            return error

    def rebuild(self, *, known: set[bytes]) -> list[index.IndexedPack]:
        """Return the tables of all packs in the storage but the `known` ones, read from the packs; damaged ones are passed over."""
        packs = []
        for info in self.storage.list("packs"):
            try:
                pack_id = bytes.fromhex(info.path.rsplit("/", 1)[1])
                if pack_id not in known and len(pack_id) == PACK_ID:
                    packs.append(read_table(self.storage, pack_id, info.size, self.id, self.wrapping_key))
            except (ValueError, DamagedError, ObjectNotFoundError):
                continue
        return packs

    def _set_states(self, removed: set[bytes], condemned: set[bytes], damage: DamageList) -> set[str]:
        """Work out the states of all packs; return the index objects that they were worked out from."""
        names = self.cache.set_states(removed=removed, condemned=condemned)
        damaged = set()
        for pack_hex, blob_hex in damage.blobs:
            number = self.cache.pack_number(bytes.fromhex(pack_hex))
            if number is not None:
                damaged.add((number, bytes.fromhex(blob_hex)))
        for pack_hex in damage.packs:
            number = self.cache.pack_number(bytes.fromhex(pack_hex))
            if number is not None and self.cache.states[number] == USABLE:
                self.cache.states[number] = CONDEMNED_PACK  # should it come back, it can be read
        self.cache.damaged = damaged
        self.has_damage = bool(damage.blobs or damage.packs)
        return names

    def reload(self) -> None:
        """Throw the local index away and load it anew: after something in it turned out not to be there.

        Packs whose index object was lost are found by their own tables.
        """
        with self._synchronising:
            self.cache.clear()
            self.synchronise()
            self.cache.load_orphans(self.rebuild(known=self.cache.indexed()))

    def pack_list(self, kind: Kind, prefix: str) -> set[bytes]:
        """Return all pack ids in the readable lists below `prefix` (condemned or removed)."""
        found: set[bytes] = set()
        replaced: set[str] = set()
        for _, part in self._lists(kind, prefix, PackList):
            found |= part.ids
            replaced.update(part.instead_of)
        if kind == Kind.CONDEMNED:
            self.replaced = replaced
        return found

    def condemnations(self) -> list[tuple[datetime | None, datetime]]:
        """Return, of each list of condemned packs, when the collector began to look and when it was published, by the storage's clock."""
        return [(part.surveyed, info.modified) for info, part in self._lists(Kind.CONDEMNED, CONDEMNED, PackList)]

    def sizes(self, paths: Iterable[str]) -> Iterator[tuple[str, int | None]]:
        """Yield path and size of objects by a look at each, several at once; None for those that are not there."""
        yield from self._parallel(self._size_or_none, paths)

    def _size_or_none(self, path: str) -> int | None:
        try:
            return self.storage.stat(path).size
        except ObjectNotFoundError:
            return None

    def record_damage(self, *, packs: set[str], blobs: set[tuple[str, str]]) -> None:
        """Record packs that are gone and places whose bytes are wrong, all in hexadecimal: nothing new will refer to them.

        A blob that is nowhere has the place NOWHERE.
        """
        known = self.damage()
        fresh_packs, fresh_blobs = sorted(packs - set(known.packs)), sorted(blobs - set(known.blobs))
        for at in range(0, max(len(fresh_packs), len(fresh_blobs)), DAMAGE_PART):
            part = DamageList(packs=fresh_packs[at : at + DAMAGE_PART], blobs=fresh_blobs[at : at + DAMAGE_PART])
            self.put_object(Kind.DAMAGED, f"{DAMAGED}/{secrets.token_hex(16)}", msgspec.json.encode(part))

    def damage(self) -> DamageList:
        """Return the damage that verifications recorded, as far as their records are readable."""
        packs: list[str] = []
        blobs: list[tuple[str, str]] = []
        for _, part in self._lists(Kind.DAMAGED, DAMAGED, DamageList):
            packs += part.packs
            blobs += part.blobs
        return DamageList(packs=packs, blobs=blobs)

    # --- packs ---

    def wrapping_key(self, kind: PackKind) -> bytes:
        """Return the key that wraps the keys of packs of this kind."""
        return self.keys.data if kind == PackKind.DATA else self.keys.tree

    def cipher(self, number: int) -> tuple[PackInfo, PackCipher]:
        """Return what is known of a pack, and its cipher. Raises DamagedError."""
        info = self.cache.pack(number)
        cipher = self._ciphers.get(number)
        if cipher is None:
            cipher = unwrap(info, self.id, self.wrapping_key(info.kind))
            if len(self._ciphers) >= MAX_CIPHERS:
                self._ciphers.clear()
            self._ciphers[number] = cipher
        return info, cipher

    # --- time and space ---

    def clock(self) -> datetime:
        """Return the time by the storage's clock, the only one that ages are measured with.

        Writes a small object to learn it; on a full storage the reserve makes room.
        """
        path = f"{LEASES}/clock-{secrets.token_hex(8)}"
        self.storage_full_safe(lambda: self.storage.upload(path, b"clock"))
        try:
            return self.storage.stat(path).modified
        finally:
            with suppress(ObjectLockedError):  # where everything is locked from the start
                self.storage.delete(path)

    def storage_full_safe(self, write: Callable[[], object]) -> None:
        """Call `write`; where the storage is full, give up the reserve and call it again."""
        try:
            write()
        except NoSpaceError:
            self.storage.delete(RESERVE)
            write()

    def restore_reserve(self) -> None:
        """Make the reserve again if it was given up and there is room; no error where there is none."""
        if self._size_or_none(RESERVE) is not None:
            return
        try:
            self.storage.create(RESERVE, secrets.token_bytes(RESERVE_SIZE))
        except (ObjectExistsError, NoSpaceError):
            return

    def mend_config(self) -> list[str]:
        """Write `config` or its copy again where opening found it missing or changed; return which, none where the storage refuses.

        A storage that takes new objects but lets none be replaced is no reason to make no backup.
        """
        mended = []
        for path in self._stale_configs:
            with suppress(StorageError):
                self.storage.upload(path, self.config.encode())
                if self.storage.read(path) != self.config.encode():
                    # In a bucket the first version that was ever locked is the one that counts, until it is removed.
                    self.storage.delete(path)
                    self.storage.upload(path, self.config.encode())
                mended.append(path)
        self._stale_configs = [path for path in self._stale_configs if path not in mended]
        return mended

    @property
    def grace(self) -> timedelta:
        """How long something stays that was marked for deletion."""
        return timedelta(seconds=self.config.grace)


def open_repository(storage: StorageBackend, *, passphrase: Secret | None, cache_directory: Path) -> Repository:
    """Open the repository in `storage`: unlock, verify the config, synchronise the index.

    `passphrase` may be a recovery key or the content of a key file. The cache lies in a folder of its own below `cache_directory`. Raises NotARepositoryError,
    NewerVersionError, WrongKeyError, DamagedError.
    """
    head = read_head(storage)
    config, keys = head.open(storage, passphrase)
    # The address is part of the name: two copies of one repository differ in their objects.
    place = blake2b(storage.url.encode(), digest_size=6).hexdigest()
    cache = IndexCache(cache_directory / f"{config.id}-{place}")
    try:
        repository = Repository(storage, config, keys, cache, stale_configs=head.stale(config))
        repository.synchronise()
    except BaseException:
        cache.close()
        raise
    return repository
