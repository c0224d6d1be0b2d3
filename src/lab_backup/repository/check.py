"""Verification: everything that backups refer to is there, and reads back as it was written.

Three depths. *Structure* reads every manifest, index object and tree node, and looks that every pack is there at its full size. A *sample*
reads some of the chunks as well, *full* all of them. What is found is recorded in the repository, so that the next backup stores it again.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lab_backup.errors import LabBackupError
from lab_backup.repository import index, marks
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.cache import Location
from lab_backup.repository.damage_places import damage_places
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import ChunkMissingError, DamagedError, RepositoryError
from lab_backup.repository.head import stale_configs
from lab_backup.repository.immutability import IMMUTABILITY, Statement
from lab_backup.repository.keys import KeySlot
from lab_backup.repository.live_set import LiveSet
from lab_backup.repository.marks import Verification
from lab_backup.repository.one_object import read_object
from lab_backup.repository.pack import Entry, PackInfo, PackKind
from lab_backup.repository.ranges import ranges
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import (
    CONDEMNED,
    DAMAGED,
    INDEX,
    NOWHERE,
    REMOVED,
    DamageList,
    PackList,
    Repository,
)
from lab_backup.repository.staged import staged
from lab_backup.repository.unlock import KEYS
from lab_backup.repository.untrusted_json import parse
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import ObjectNotFoundError

BATCH = 65536  # chunks sorted by pack at once: 8 GiB of a disk, 10 MiB of memory
SECONDS_PER_DAY = 86400


@dataclass(frozen=True, slots=True)
class Damage:
    """Something wrong: `what` in words, the blob and pack if it is one, and what it touches (`backup/disk@offset`, `backup/tree:path`)."""

    what: str
    missing: bool
    blob: str | None = None
    pack: str | None = None
    touches: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """The outcome. `checked` counts blobs whose place was checked, `read` those whose content was."""

    checked: int = 0
    read: int = 0
    bytes_read: int = 0
    backups: int = 0
    damage: list[Damage] = field(default_factory=list)

    @property
    def corrupt(self) -> int:
        """How many things are there but wrong."""
        return sum(not damage.missing for damage in self.damage)

    @property
    def missing(self) -> int:
        """How many things are not there."""
        return sum(damage.missing for damage in self.damage)


class Checker:
    """One verification run."""

    def __init__(self, repository: Repository, directory: Path, *, advance: Callable[[int], None]) -> None:
        """Verify `repository`; ids already seen are kept in a temporary folder below `directory`."""
        self._repository = repository
        self._directory = directory
        self._advance = advance
        self._reader = Reader(repository)
        self._backups = Backups(repository)
        self._report = Report()
        self._bad_blobs: dict[bytes, tuple[str, bool, int | None]] = {}  # id → words, missing, pack
        self._bad_packs: set[int] = set()
        self._orphans: set[int] = set()
        self._sizes: dict[str, int] = {}

    def run(self, backups: list[Backup] | None, *, share: float, day: int) -> Report:
        """Verify `backups` (None: all, and the repository's other objects too); read the content of `share` (0 to 1) of the chunks.

        Which share depends on `day`: runs on 1/share days in a row read everything once. Storage errors pass through:
        a storage that cannot be reached is not damage.
        """
        self._repository.synchronise()
        whole = backups is None
        chosen = self._backups.all() if backups is None else backups
        if whole:
            self._check_objects()
        self._sizes = {info.path: info.size for info in self._repository.storage.list("packs")}
        self._report.backups = len(chosen)
        with LiveSet(self._directory) as seen:
            walk = Walk(self._reader, seen=seen.add)
            for batch in _batches(self._locations(walk, chosen), BATCH):
                self._read(batch, share, day)
        # Tree nodes that were read from a second place, the first being damaged.
        for place, error in self._reader.bad_places.items():
            missing = isinstance(error, ChunkMissingError)
            self._bad_blobs.setdefault(place.entry.id, (str(error), missing, place.pack))
        if self._bad_blobs:
            chosen = self._look_again(chosen)
        if share >= 1:
            self._check_tables()
        self._explain(chosen)
        return self._report

    # --- objects besides packs ---

    def _check_objects(self) -> None:
        """Read config, key slots and every sealed object from the storage, whatever the local copy says of them."""
        storage = self._repository.storage
        for path, error in stale_configs(storage, self._repository.config).items():
            self._note(path, error)
        for kind, (prefix, check) in self._sealed().items():
            for info in storage.list(prefix):
                try:
                    check(self._repository.get_object(kind, info.path), info.path)
                except ObjectNotFoundError:  # removed since
                    continue
                except RepositoryError as error:
                    self._note(info.path, error)
        for info in storage.list(KEYS):
            try:
                intact = parse(read_object(storage, info.path), KeySlot, info.path).intact
            except ObjectNotFoundError:
                continue
            except DamagedError:
                intact = False
            if not intact:
                words = f"{info.path} is damaged: its passphrase no longer opens the repository"
                self._note(info.path, DamagedError(words))

    def _sealed(self) -> dict[Kind, tuple[str, Callable[[bytes, str], object]]]:
        """Return where the sealed objects of each kind are, and what reads their payload."""
        repository_id = self._repository.config.id
        return {
            Kind.INDEX: (INDEX, index.decode),
            Kind.MANIFEST: (
                manifests.PREFIX,
                lambda payload, path: manifests.decode(payload, path.rpartition("/")[2], repository_id),
            ),
            Kind.MARK: (marks.PREFIX, marks.decode),
            Kind.CONDEMNED: (CONDEMNED, lambda payload, path: parse(payload, PackList, path)),
            Kind.REMOVED: (REMOVED, lambda payload, path: parse(payload, PackList, path)),
            Kind.DAMAGED: (DAMAGED, lambda payload, path: parse(payload, DamageList, path)),
            Kind.IMMUTABILITY: (IMMUTABILITY, lambda payload, path: parse(payload, Statement, path)),
        }

    def _note(self, path: str, error: LabBackupError) -> None:
        missing = isinstance(error, ObjectNotFoundError)
        self._report.damage.append(Damage(str(error), missing=missing, touches=(path,)))

    # --- blobs ---

    def _locations(self, walk: Walk, backups: list[Backup]) -> Iterator[Location]:
        """Yield every blob of the backups once, where its pack seems to be whole."""

        def broken(identity: bytes, _level: int, _offset: int, error: DamagedError) -> None:
            place = self._reader.find(identity)
            self._bad_blobs.setdefault(identity, (str(error), place is None, place.pack if place else None))

        for backup in backups:
            for chunk_list in backup.manifest.lists:
                for found in walk.survey(chunk_list, on_damage=broken):
                    identity, level = found.id, found.level
                    self._report.checked += 1
                    self._advance(0 if level is not None else found.length)
                    place = self._reader.find(identity)
                    if place is None:
                        what = "chunk" if level is None else "tree node"
                        self._bad_blobs[identity] = (
                            f"{what} {identity.hex()[:16]} is nowhere in the repository",
                            True,
                            None,
                        )
                    elif not self._pack_is_whole(place):
                        self._bad_blobs[identity] = self._of_pack(place)
                    elif level is None:
                        if found.fits(place.entry.raw):
                            yield place
                        else:
                            words = (
                                f"chunk {identity.hex()[:16]} has {place.entry.raw} bytes where {found.needs} belong"
                            )
                            self._bad_blobs[identity] = (words, False, place.pack)
                    if place is not None and place.pack in self._repository.cache.orphans:
                        self._orphans.add(place.pack)

    def _pack_is_whole(self, place: Location) -> bool:
        info = self._repository.cache.pack(place.pack)
        size = self._sizes.get(info.path)
        if size is None:
            # It may be younger than our listing.
            try:
                size = self._sizes[info.path] = self._repository.storage.stat(info.path).size
            except ObjectNotFoundError:
                self._bad_packs.add(place.pack)
        return size == info.size

    def _read(self, batch: list[Location], share: float, day: int) -> None:
        """Read the blobs that today's share takes in, many packs at once."""
        if share <= 0:
            return
        chosen = [place for place in batch if share >= 1 or _in_share(place.entry.id, share, day)]
        requests = staged(
            ranges(chosen),
            self._fetch_request,
            self._check_request,
            fetchers=self._repository.storage.concurrency,
            workers=default_threads(),
        )
        for (_, entries), bad in requests:
            self._report.read += len(entries)
            self._report.bytes_read += sum(entry.stored for entry in entries)
            self._bad_blobs.update(bad)

    def _fetch_request(self, request: tuple[int, list[Entry]]) -> bytes | None:
        try:
            return self._reader.fetch_range(*request)
        except ChunkMissingError:
            return None

    def _check_request(
        self, request: tuple[int, list[Entry]], data: bytes | None
    ) -> dict[bytes, tuple[str, bool, int | None]]:
        """Return what is bad among the blobs of a request; None where its pack is gone."""
        number, entries = request
        try:
            if data is not None:
                for _ in self._reader.decrypt_range(number, entries, data, PackKind.DATA):
                    pass
                return {}
        except DamagedError:
            pass  # which of them it is, and whether it was only on its way, is seen one by one
        return self._one_by_one([Location(number, entry) for entry in entries], PackKind.DATA)

    def _one_by_one(self, places: list[Location], kind: PackKind) -> dict[bytes, tuple[str, bool, int | None]]:
        bad: dict[bytes, tuple[str, bool, int | None]] = {}
        for place in places:
            try:
                for _ in self._reader.read_blobs([place], kind):
                    pass
            except DamagedError as error:
                bad[place.entry.id] = (str(error), False, place.pack)
        return bad

    def _look_again(self, backups: list[Backup]) -> list[Backup]:
        """Forget what only looked like damage because a collection moved or removed it meanwhile; return the backups that are still there."""
        there = [backup for backup in backups if self._backups.exists(backup.id)]
        suspects, self._bad_blobs, self._bad_packs = self._bad_blobs, {}, set()
        self._repository.reload()
        cache = self._repository.cache
        self._sizes = {info.path: info.size for info in self._repository.storage.list("packs")}
        for identity, (words, missing, number) in suspects.items():
            place = cache.locate(identity)
            if place is None:
                self._bad_blobs[identity] = (words, True, None)
            elif not self._pack_is_whole(place):
                self._bad_blobs[identity] = self._of_pack(place)
            elif place.pack != number or missing:
                self._bad_blobs.update(self._one_by_one([place], cache.pack(place.pack).kind))
            else:
                self._bad_blobs[identity] = (words, missing, number)
        return there

    def _of_pack(self, place: Location) -> tuple[str, bool, int]:
        info = self._repository.cache.pack(place.pack)
        gone = info.path not in self._sizes
        words = "is gone" if gone else "does not have the size that it was written with"
        return f"pack {info.id.hex()} {words}", gone, place.pack

    def _check_tables(self) -> None:
        """Read header and table of contents of every pack: what a lost index would be rebuilt from."""
        packs = [
            info
            for number, info in self._repository.cache.packs()
            if number not in self._bad_packs and self._sizes.get(info.path) == info.size
        ]
        with ThreadPoolExecutor(self._repository.storage.concurrency, thread_name_prefix="verify") as pool:
            self._report.damage.extend(damage for damage in pool.map(self._check_table, packs) if damage is not None)

    def _check_table(self, info: PackInfo) -> Damage | None:
        try:
            self._reader.pack_table(info)
        except RepositoryError as error:
            return Damage(str(error), missing=False, pack=info.id.hex())
        except ObjectNotFoundError:
            return None
        return None

    # --- what it means ---

    def _explain(self, backups: list[Backup]) -> None:
        """Name the backups and disks that each damaged blob touches. Walks again, but only if there is damage."""
        for orphan in sorted(self._orphans):
            name = self._repository.cache.pack(orphan).id.hex()
            words = f"the index object that names pack {name} is lost, the pack is not: lab-backup gc indexes it anew"
            self._report.damage.append(Damage(words, missing=True, pack=name))
        touched: dict[bytes, list[str]] = {identity: [] for identity in self._bad_blobs}
        if touched:
            for backup in backups:
                for entry in backup.manifest.entries:
                    for identity, place in damage_places(self._reader, entry, touched):
                        touched[identity].append(f"{backup.id}/{entry.name}{place}")
        # What no backup touches any more belonged to one that was deleted meanwhile.
        self._bad_blobs = {identity: bad for identity, bad in self._bad_blobs.items() if touched[identity]}
        for identity, (words, missing, number) in self._bad_blobs.items():
            pack = None if number is None else self._repository.cache.pack(number).id.hex()
            self._report.damage.append(
                Damage(words, missing=missing, blob=identity.hex(), pack=pack, touches=tuple(touched[identity]))
            )

    def record(self, backups: list[Backup], *, share: float, by: str) -> None:
        """Write into the repository what was found: damaged blobs, so that writers store them again, and each backup's state."""
        packs, blobs = set(), set()
        for identity, (_, _, number) in self._bad_blobs.items():
            if number is None:
                blobs.add((NOWHERE, identity.hex()))
                continue
            info: PackInfo = self._repository.cache.pack(number)
            if info.path in self._sizes:
                blobs.add((info.id.hex(), identity.hex()))
            else:
                packs.add(info.id.hex())
        if packs or blobs:
            self._repository.record_damage(packs=packs, blobs=blobs)
        bad = {touch.split("/")[0] for damage in self._report.damage for touch in damage.touches}
        time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        for backup in backups:
            outcome = Verification(
                time=time, level=_level(share), ok=backup.id not in bad, sample=share if 0 < share < 1 else None
            )
            if self._backups.exists(backup.id):
                self._backups.mark(backup.id, "verified", outcome, time=time, by=by)


def _level(share: float) -> Literal["structure", "sample", "full"]:
    if share <= 0:
        return "structure"
    return "full" if share >= 1 else "sample"


def _in_share(blob_id: bytes, share: float, day: int) -> bool:
    """Whether today is this blob's day: ids are random, so their first bytes spread blobs evenly over the days."""
    days = round(1 / share)
    if math.isclose(days * share, 1, rel_tol=1e-9):
        # Whole days: exact, so that no blob falls between two days by rounding.
        return int.from_bytes(blob_id[:8], "big") % days == day % days
    position = int.from_bytes(blob_id[:4], "big") / 2**32
    start = day * share % 1.0
    return (position - start) % 1.0 < share


def _batches(items: Iterable[Location], size: int) -> Iterator[list[Location]]:
    stream = iter(items)
    while batch := list(itertools.islice(stream, size)):
        yield batch


def today(now: datetime) -> int:
    """Return the number of the day, which chooses a sample."""
    return int(now.timestamp() // SECONDS_PER_DAY)
