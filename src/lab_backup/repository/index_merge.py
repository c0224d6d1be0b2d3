"""Keeping the index small: objects that name removed packs, or are many and small, are written anew."""

import secrets
from collections.abc import Iterable, Iterator
from datetime import timedelta

from lab_backup.repository import index
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import ENTRY
from lab_backup.repository.repository import DAMAGED, INDEX, REMOVED, DamageList, Repository
from lab_backup.repository.survey import Surveyor
from lab_backup.repository.sweep import Sweeper
from lab_backup.repository.untrusted_json import parse
from lab_backup.storage.base import ObjectInfo, ObjectNotFoundError
from lab_backup.units import MiB

MERGE_ENTRIES = 100_000  # blobs in one index object: 4.5 MiB
MANY_INDEXES = 64  # small index objects are merged from so many on
SMALL_INDEX = 1 * MiB
MAX_REWRITE = timedelta(hours=1)  # where the collection took longer, what the new index names is looked at once more
SETTLED = timedelta(hours=1)  # no list lags so far behind: what is that old is seen by everybody
# How long a list of removed packs stays at least, should somebody sleep who is about to publish an index that names them.
KEEP_REMOVED = timedelta(days=7)


class IndexMerger:
    """Rewrites the index, and drops the lists that speak only of packs that no index names."""

    def __init__(self, repository: Repository, surveyor: Surveyor, sweeper: Sweeper, *, grace: timedelta) -> None:
        """Tidy the index of `repository`, as part of the collection that `sweeper` sweeps for."""
        self._repository = repository
        self._surveyor = surveyor
        self._sweeper = sweeper
        self._grace = grace

    def publish(self, packs: Iterable[IndexedPack]) -> None:
        """Store index objects that name these packs."""
        batch: list[IndexedPack] = []
        entries = 0
        for pack in packs:
            batch.append(pack)
            entries += len(pack.table) // ENTRY.size
            if entries >= MERGE_ENTRIES:
                self._put_index(batch)
                batch, entries = [], 0
        if batch:
            self._put_index(batch)

    def _put_index(self, packs: list[IndexedPack]) -> None:
        path, payload = f"{INDEX}/{secrets.token_hex(16)}", index.encode(packs)
        self._repository.storage_full_safe(lambda: self._repository.put_object(Kind.INDEX, path, payload))
        self._sweeper.written.add(path)

    def rewrite(self, stored: set[bytes]) -> None:
        """Write anew what index objects say that name removed packs, or are many and small; then drop what nobody needs any more.

        An object goes only when newer ones name all its packs, and were there long enough for everybody to see them; `stored` are the packs that were there. So there is
        never a moment in which a pack is named by none, and of two collectors that see different things none undoes the other's work.
        """
        repository, storage = self._repository, self._repository.storage
        removed = repository.pack_list(Kind.REMOVED, REMOVED)
        objects = {
            info: {pack.info.id for pack in self._surveyor.read_index(info.path)}
            for info in sorted(storage.list(INDEX), key=lambda info: (info.modified, info.path), reverse=True)
        }
        newer: set[bytes] = set()  # named by an object that is newer than the one at hand
        settled: set[bytes] = set()  # and seen by everybody
        needed: dict[ObjectInfo, set[bytes]] = {}
        superseded = []
        for info, packs in objects.items():
            wanted = packs - removed
            if not wanted <= newer:
                needed[info] = packs
            elif wanted <= settled or self._sweeper.exclusive:
                superseded.append(info)
            newer |= wanted
            if self._sweeper.age(info) >= SETTLED:
                settled |= wanted
        small = [info for info in needed if info.size < SMALL_INDEX]
        many = set(small) if len(small) > MANY_INDEXES else set()
        stale = [info for info, packs in needed.items() if info in many or packs & removed]
        self._merge(stale, {pack for info in stale for pack in needed[info]} - removed)
        for info in (*superseded, *(stale if self._sweeper.exclusive else ())):
            self._sweeper.delete(info.path)
            del objects[info]
        named = set().union(*objects.values())
        self._drop_removed(named)
        self._forget_damage(named | stored)

    def _merge(self, stale: list[ObjectInfo], packs: set[bytes]) -> None:
        """Store index objects that name `packs`, which the `stale` ones name."""
        if not packs:
            return
        named = set(packs)

        def wanted() -> Iterator[IndexedPack]:
            for info in stale:
                for pack in self._surveyor.read_index(info.path):
                    if pack.info.id in packs:
                        packs.remove(pack.info.id)
                        yield pack

        self.publish(wanted())
        if self._repository.clock() - self._sweeper.now > MAX_REWRITE:
            # Others may have removed some of these packs meanwhile, and even dropped the list that says so. Our objects must stay
            # all the same: somebody may have deleted others already because ours name the same packs.
            gone = {pack for pack in sorted(named) if not self._surveyor.is_stored(pack)}
            if gone:
                self._sweeper.publish(Kind.REMOVED, REMOVED, gone)

    def _drop_removed(self, named: set[bytes]) -> None:
        """Delete old lists of removed packs once no index object names any of them, and they are really gone."""
        keep = max(self._grace, KEEP_REMOVED)
        for info in list(self._repository.storage.list(REMOVED)):
            packs = self._sweeper.read_list(Kind.REMOVED, info.path).ids
            old = self._sweeper.exclusive or self._sweeper.age(info) >= keep
            if old and not packs & named and not any(map(self._surveyor.is_stored, sorted(packs))):
                self._sweeper.delete(info.path)

    def _forget_damage(self, known: set[bytes]) -> None:
        """Drop records of damage that speak only of packs that are gone for good."""
        for info in list(self._repository.storage.list(DAMAGED)):
            try:
                record = parse(self._repository.get_object(Kind.DAMAGED, info.path), DamageList, info.path)
            except (DamagedError, ObjectNotFoundError):
                continue
            if not any(bytes.fromhex(pack) in known for pack in (*record.packs, *(pack for pack, _ in record.blobs))):
                self._sweeper.delete(info.path)
