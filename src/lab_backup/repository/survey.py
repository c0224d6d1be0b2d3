"""The first half of a collection: what backups refer to, where it is stored, and which packs are there at all."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from lab_backup.repository import index
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import DamagedError, NewerVersionError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.live_set import LiveSet, Place
from lab_backup.repository.pack import ENTRY, ID, PACK_ID, pack_path
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import CONDEMNED, INDEX, REMOVED, Repository
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import ObjectInfo, ObjectNotFoundError

GOOD, POOR, BAD = 0, 1, 2  # how much a place can be relied on: sound, condemned, damaged


@dataclass(slots=True)
class Survey:
    """What was found. Packs by id."""

    live: dict[bytes, int] = field(default_factory=dict)  # bytes in use
    tables: dict[bytes, int] = field(
        default_factory=dict
    )  # packs that index objects name, and the bytes of all their blobs
    stored: dict[bytes, ObjectInfo] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)  # packs that an index object names, but that are not there
    orphans: list[IndexedPack] = field(default_factory=list)  # packs no index object names, but backups need
    missing: int = 0
    unreadable: set[bytes] = field(default_factory=set)  # packs that might hold what is missing
    removed: set[bytes] = field(default_factory=set)  # packs that a list takes out of everybody's index
    backups: list[str] = field(default_factory=list)  # ids of those that are not deleted
    kept: set[bytes] = field(default_factory=set)  # packs that these need; only where locks are to be prolonged

    def size(self, packs: set[bytes]) -> int:
        """Return how many bytes these packs take."""
        return sum(self.stored[pack].size for pack in packs if pack in self.stored)


class Surveyor:
    """Takes the survey, and reads index objects: those that cannot be read are noted in `broken_indexes`."""

    def __init__(self, repository: Repository, backups: Backups, directory: Path) -> None:
        """Survey `repository`; large sets are kept in temporary folders below `directory`."""
        self._repository = repository
        self._backups = backups
        self._directory = directory
        self._reader = Reader(repository)
        self.broken_indexes: set[str] = set()

    def survey(
        self, live: LiveSet, *, ignore: AbstractSet[str], locking: bool, spent: AbstractSet[str] = frozenset()
    ) -> Survey:
        """Find what every backup but the ignored ones refers to, and for each blob the one place that is to stay.

        Of `spent` ones, which were deleted long ago and are there only because they are locked, what cannot be read is passed over.

        With `locking` also which packs those need that are not deleted. Raises DamagedError where that cannot be told, NewerVersionError.
        """
        repository, survey = self._repository, Survey()
        # The packs before the manifests: a pack that is written after this listing is not looked at.
        for info in repository.storage.list("packs"):
            pack_id = _pack_id(info.path)
            if pack_id is not None:
                survey.stored[pack_id] = info
        backups = self._backups.all()
        for path, error in self._backups.damaged.items():
            if path.startswith(manifests.PREFIX) and manifests.id_of(path) not in spent:
                if isinstance(error, NewerVersionError):
                    raise error
                raise DamagedError(
                    f"{path} cannot be read, so nobody can tell what it needs; nothing was removed ({error})",
                    hint="make sure that it may be read, or bring it back from a copy; else give the backup up: lab-backup delete --now",
                )
        walk = Walk(self._reader, seen=live.add)
        # First those that must be whole: what is passed over of the others counts as seen from then on.
        for backup in sorted(backups, key=lambda backup: backup.id in spent):
            if backup.id not in ignore:
                self._walk(walk, backup, strict=backup.id not in spent)
        survey.backups = [backup.id for backup in backups if backup.state.deleted is None]
        self._place(live, survey)
        if locking:
            survey.kept = self._needed_by(live, survey, backups)
        return survey

    def _walk(self, walk: Walk, backup: Backup, *, strict: bool = True) -> None:
        for chunk_list in backup.manifest.lists:
            for _ in walk.survey(chunk_list, on_damage=self._unreadable if strict else _passed_over):
                pass

    def _needed_by(self, live: LiveSet, survey: Survey, backups: list[Backup]) -> set[bytes]:
        """Return the packs that backups need which are not deleted: locks of the others are to run out."""
        if len(survey.backups) == len(backups):
            return set(survey.live)
        with LiveSet(self._directory) as needed:
            walk = Walk(self._reader, seen=needed.add)
            for backup in backups:
                if backup.state.deleted is None:
                    self._walk(walk, backup)
            return {place.pack for blob_id, _ in needed.places() if (place := live.place(blob_id)) is not None}

    def _unreadable(self, blob_id: bytes, _level: int, _offset: int, error: DamagedError) -> None:
        raise DamagedError(
            f"tree node {blob_id.hex()[:16]} cannot be read, so nobody can tell what is below it; nothing was removed ({error})",
            hint="run lab-backup verify, and delete the backups that it names with --now",
        ) from error

    def _place(self, live: LiveSet, survey: Survey) -> None:
        condemned = self._repository.pack_list(Kind.CONDEMNED, CONDEMNED)
        removed = survey.removed = self._repository.pack_list(Kind.REMOVED, REMOVED)
        damage = self._repository.damage()
        bad = {(bytes.fromhex(pack), bytes.fromhex(blob)) for pack, blob in damage.blobs}

        def offer(pack: IndexedPack) -> None:
            pack_id = pack.info.id
            rank = BAD if pack_id in survey.gone else POOR if pack_id in condemned else GOOD
            for at in range(0, len(pack.table), ENTRY.size):
                blob_id = pack.table[at : at + ID]
                stored = int.from_bytes(pack.table[at + ID + 4 : at + ID + 8], "little")
                live.offer(blob_id, Place(BAD if bad and (pack_id, blob_id) in bad else rank, pack_id, stored))

        for pack in self._indexed(survey, removed):
            offer(pack)
        known = set(survey.tables) | removed
        orphans = [pack for pack in self._repository.rebuild(known=known) if pack.info.id in survey.stored]
        for pack in orphans:
            offer(pack)
        for _, place in live.places():
            if place is None:
                survey.missing += 1
            else:
                survey.live[place.pack] = survey.live.get(place.pack, 0) + place.stored
        survey.orphans = [pack for pack in orphans if self.broken_indexes or pack.info.id in survey.live]
        if survey.missing:
            survey.unreadable = set(survey.stored) - known - {pack.info.id for pack in orphans}

    def _indexed(self, survey: Survey, removed: set[bytes]) -> Iterator[IndexedPack]:
        """Yield every pack that an index object names, and note which of them are not there."""
        for info in self._repository.storage.list(INDEX):
            for pack in self.read_index(info.path):
                if pack.info.id not in removed:
                    survey.tables[pack.info.id] = sum(stored for _, _, stored, _, _ in ENTRY.iter_unpack(pack.table))
                    # A pack is stored before it is indexed, so one that is not there now is gone, not late.
                    if pack.info.id not in survey.stored and not self.is_stored(pack.info.id):
                        survey.gone.add(pack.info.id)
                    yield pack

    def is_stored(self, pack_id: bytes) -> bool:
        """Whether the pack is there."""
        try:
            self._repository.storage.stat(pack_path(pack_id))
        except ObjectNotFoundError:
            return False
        return True

    def read_index(self, path: str) -> list[IndexedPack]:
        """Return what an index object names, nothing where it is gone or damaged."""
        try:
            return index.decode(self._repository.get_object(Kind.INDEX, path), path)
        except ObjectNotFoundError:
            return []
        except DamagedError:
            # Its packs are found as orphans, by their own tables, and indexed anew.
            self.broken_indexes.add(path)
            return []


def _passed_over(_blob_id: bytes, _level: int, _offset: int, _error: DamagedError) -> None:
    """Say nothing."""


def _pack_id(path: str) -> bytes | None:
    try:
        pack_id = bytes.fromhex(path.rsplit("/", 1)[1])
    except ValueError:
        return None
    return pack_id if len(pack_id) == PACK_ID and pack_path(pack_id) == path else None
