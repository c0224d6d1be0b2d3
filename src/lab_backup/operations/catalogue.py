"""Listing and describing backups."""

from dataclasses import dataclass
from datetime import datetime

from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.manifest import DiskEntry, FileEntry, StreamEntry, TreeEntry
from lab_backup.repository.marks import Verification
from lab_backup.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """A backup in the words of the command line. `time` is its point in time, ISO 8601 in UTC; sizes in bytes."""

    backup: str
    time: str
    source: str
    source_kind: str
    source_id: str
    host: str
    kind: str
    consistency: str
    bytes_total: int
    bytes_read: int
    bytes_stored: int
    duration_seconds: float
    parent: str | None
    checksum: str
    protected: bool
    archived: bool
    deleted: datetime | None
    tags: tuple[str, ...]
    verified: Verification | None
    disks: tuple[DiskEntry, ...]
    files: tuple[FileEntry, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    protected_because: str = ""
    locked_until: datetime | None = None  # only in the answer to a deletion
    streams: tuple[StreamEntry, ...] = ()
    trees: tuple[TreeEntry, ...] = ()


def summary(backup: Backup) -> BackupSummary:
    """Return what people want to know of `backup`."""
    manifest, state, statistics = backup.manifest, backup.state, backup.manifest.statistics
    return BackupSummary(
        backup=manifest.backup,
        time=manifest.time,
        source=manifest.source.name,
        source_kind=manifest.source.kind,
        source_id=manifest.source.id,
        host=manifest.source.host,
        kind=manifest.kind,
        consistency=manifest.consistency,
        bytes_total=statistics.bytes_total,
        bytes_read=statistics.bytes_read,
        bytes_stored=statistics.bytes_stored,
        duration_seconds=statistics.duration_seconds,
        parent=manifest.parent,
        checksum=backup.checksum,
        protected=state.protected,
        protected_because=state.protected_because,
        archived=state.archived,
        deleted=state.deleted,
        tags=state.tags,
        verified=state.verified,
        disks=manifest.disks,
        files=manifest.files,
        streams=manifest.streams,
        trees=manifest.trees,
        warnings=manifest.warnings,
        notes=manifest.notes,
    )


def unreadable_summary(backup_id: str) -> BackupSummary:
    """Return what can be said of a backup whose manifest cannot be read: its id."""
    return BackupSummary(
        backup=backup_id, time="", source="unknown", source_kind="", source_id="", host="", kind="", consistency="",
        bytes_total=0, bytes_read=0, bytes_stored=0, duration_seconds=0.0, parent=None, checksum="",
        protected=False, archived=False, deleted=None, tags=(), verified=None, disks=(), files=(), warnings=(), notes=(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """Backups, oldest first, and what of the repository could not be read: object path → what is wrong with it."""

    backups: list[BackupSummary]
    unreadable: dict[str, str]


def list_backups(repository: Repository, *, source: str | None = None, deleted: bool = True) -> Listing:
    """Return the backups, those of `source` only if given (`NAME`, `KIND/NAME` or a source's id)."""
    backups = Backups(repository)
    found = [summary(backup) for backup in backups.all()]
    if source is not None:
        found = [item for item in found if source in {item.source, item.source_id, f"{item.source_kind}/{item.source}"}]
    if not deleted:
        found = [item for item in found if item.deleted is None]
    return Listing(found, {path: str(error) for path, error in backups.damaged.items()})


def find_backup(repository: Repository, spec: str) -> Backup:
    """Return the backup that `spec` names. Raises BackupNotFoundError, AmbiguousError, UsageError."""
    return Backups(repository).find(spec)
