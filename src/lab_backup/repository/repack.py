"""Copying what is needed out of packs that are mostly garbage, so that the rest of them can go."""

from datetime import timedelta

from lab_backup.repository.cache import Location
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.live_set import LiveSet
from lab_backup.repository.pack import pack_path
from lab_backup.repository.packer import Packer
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.survey import Survey
from lab_backup.repository.sweep import Sweeper
from lab_backup.storage.base import NoSpaceError, ObjectNotFoundError

REPACK_BELOW = 0.5  # a pack less than half of which is needed is worth copying


class Repacker:
    """Copies, then condemns what it has copied."""

    def __init__(self, repository: Repository, sweeper: Sweeper, *, grace: timedelta) -> None:
        """Repack in `repository` what is older than `grace`."""
        self._repository = repository
        self._reader = Reader(repository)
        self._sweeper = sweeper
        self._grace = grace

    def sparse(self, survey: Survey, leave: set[bytes]) -> set[bytes]:
        """Return the packs that are mostly garbage and old enough to be copied and given up."""
        return {
            pack_id
            for pack_id, used in survey.live.items()
            if pack_id in survey.stored
            and pack_id in survey.tables
            and pack_id not in leave
            and used < REPACK_BELOW * survey.tables[pack_id]  # not of its size: header and table always count
            and (self._sweeper.exclusive or self._sweeper.age(survey.stored[pack_id]) >= self._grace)
        }

    def repack(self, sparse: set[bytes], spared: set[bytes], live: LiveSet) -> None:
        """Copy what is needed out of sparse packs, and out of those that were condemned before a backup turned out to need them.

        Then condemn them (the spared ones are), or with `exclusive` remove them.
        """
        copied: set[bytes] = set()
        if sparse or spared:
            self._repository.synchronise()
            try:
                with Packer(self._repository) as packer:
                    for pack_id in sorted(sparse | spared):
                        try:
                            self._copy(pack_id, live, packer)
                            copied.add(pack_id)
                        except (DamagedError, ObjectNotFoundError) as error:
                            self._sweeper.result.notes.append(f"pack {pack_id.hex()} was left as it is: {error}")
                    packer.flush()
                self._sweeper.written |= packer.indexes
                self._sweeper.written |= {self._repository.cache.pack(number).path for number in packer.packs}
            except NoSpaceError:
                self._sweeper.result.notes.append("there was no room to repack; run gc again when there is")
                copied = set()
        left = len(sparse - copied)
        self._sweeper.result.packs_condemned -= left
        self._sweeper.result.packs_repacked -= left
        if self._sweeper.exclusive:
            locked = {pack_id for pack_id in copied if self._sweeper.is_locked(pack_path(pack_id))}
            self._sweeper.remove(copied - locked)
            self._sweeper.condemn(locked - spared)
        else:
            self._sweeper.condemn(copied - spared)

    def _copy(self, pack_id: bytes, live: LiveSet, packer: Packer) -> None:
        """Store again every blob that is in use and has its place in this pack."""
        cache = self._repository.cache
        number = cache.pack_number(pack_id)
        if number is None:
            raise DamagedError("the index does not name it any more")
        info = cache.pack(number)
        here = []
        for entry in self._reader.pack_table(info):
            place = live.place(entry.id)
            if place is not None and place.pack == pack_id:
                here.append(Location(number, entry))
        for blob in self._reader.read_blobs(here, info.kind):
            if packer.claim(blob.entry.id):
                packer.store_packed(info.kind, blob.entry, blob.packed)
