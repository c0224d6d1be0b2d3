"""Schedules, backups and jobs."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from lab_backup.api.schemas.base import Body, Name, Shown, Text

Kept = Annotated[int, Field(ge=0, le=10_000)]
SourceType = Literal["vm", "container", "pod", "volume"]
Covered = Literal["vm", "container", "pod", "volume", "kvm_host", "podman_host", "tag", "all"]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$", examples=["gold"])]
Status = Literal["queued", "running", "succeeded", "succeeded with warnings", "failed", "cancelled", "interrupted"]


class Retention(Body):
    """How many backups of each period stay; all 0: every backup stays."""

    last: Kept = 0
    hourly: Kept = 0
    daily: Kept = 7
    weekly: Kept = 4
    monthly: Kept = 12
    yearly: Kept = 5


class ScheduleCreate(Body):
    """When to back up what, to which storage, and what to keep. `cron_expression` has five fields, in `timezone`.

    `source_id` is that of a source, or of the host all of whose sources are meant, new ones too; `source_tag` chooses by tag; `all` needs neither.
    """

    name: Name
    source_type: Covered
    source_id: UUID | None = None
    source_tag: Tag | None = None
    cron_expression: Annotated[str, Field(max_length=100, examples=["30 2 * * *"])]
    timezone: Annotated[str, Field(max_length=64, examples=["Europe/Vienna"])] = "UTC"
    retention_config: Retention = Retention()
    storage_backend_id: UUID
    enabled: bool = True
    verify_after: bool = False
    replicate_to: UUID | None = None
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] = 0


class ScheduleUpdate(Body):
    """What changes of a schedule; null: it stays."""

    name: Name | None = None
    cron_expression: Annotated[str, Field(max_length=100, examples=["30 2 * * *"])] | None = None
    timezone: Annotated[str, Field(max_length=64, examples=["Europe/Vienna"])] | None = None
    retention_config: Retention | None = None
    storage_backend_id: UUID | None = None
    enabled: bool | None = None
    verify_after: bool | None = None
    replicate_to: UUID | None = None
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None


class ScheduleShown(Shown):
    """A schedule."""

    id: UUID
    name: str
    source_type: Covered
    source_id: UUID | None
    source_tag: str | None
    schedule_type: str
    cron_expression: str
    timezone: str
    retention_config: Retention
    storage_backend_id: UUID
    enabled: bool
    verify_after: bool
    replicate_to: UUID | None
    jitter_seconds: int
    created_at: datetime


class KeptShown(Shown):
    """A backup as the retention of a schedule sees it now: whether it would stay, and why."""

    backup: UUID
    source_name: str
    completed_at: datetime
    kept: bool
    reasons: list[str]


class SchedulePreview(Shown):
    """The next times at which a schedule is due, in UTC; what it backs up now; and what its retention would keep of what is there."""

    next_runs: list[datetime]
    sources: list[str]
    retention: list[KeptShown]


class BackupCreate(Body):
    """A backup to make now. `full`: read the disks whole."""

    source_type: SourceType
    source_id: UUID
    storage_backend_id: UUID
    full: bool = False


class BackupShown(Shown):
    """A backup. Sizes in bytes; `metadata` has its host, warnings and notes."""

    id: UUID
    backup_id: str
    schedule_id: UUID | None
    source_type: str
    source_id: str
    source_name: str
    backup_type: str
    consistency: str
    tags: list[str]
    status: str
    size: int
    compressed_size: int
    storage_backend_id: UUID
    storage_path: str
    checksum: str
    started_at: datetime | None
    completed_at: datetime
    expires_at: datetime | None
    verified_at: datetime | None
    protected: bool
    deleted_at: datetime | None
    metadata: dict[str, Any] = Field(validation_alias="details")


class RestoreCreate(Body):
    """How to restore. `host` null: where it was made. To overwrite, `confirm` must be the name of what is replaced."""

    host: UUID | None = None
    name: Name | None = None
    overwrite: bool = False
    confirm: Text | None = None
    start: bool = False
    trusted: bool = False
    directory: Text | None = None
    volume_suffix: Text | None = None
    dry_run: bool = False


class JobShown(Shown):
    """A job. `progress` has phase, bytes done and in all, rate (bytes a second) and eta (seconds)."""

    id: UUID
    type: str
    title: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None
    hint: str | None
    attempt: int
    retry_of: UUID | None
    schedule_id: UUID | None
    storage_backend_id: UUID | None
    requested_by: UUID | None
    progress: dict[str, Any]
    result: dict[str, Any]
    metadata: dict[str, Any] = Field(validation_alias="details")


class LineShown(Shown):
    """A line of a job's log."""

    id: int
    timestamp: datetime
    level: str
    message: str


class FileShown(Shown):
    """A name in a backup. `mtime` in seconds since 1970, `size` in bytes; `target` is what a link leads to."""

    path: str
    kind: str
    mode: str
    uid: int
    gid: int
    size: int
    mtime: float
    target: str


class ProtectionShown(Shown):
    """A source that is known, with its newest good backup."""

    source_type: str
    source_id: UUID
    name: str
    host: str
    last_backup: datetime | None
    last_verified: datetime | None
    scheduled: bool


class ComplianceShown(ProtectionShown):
    """How a source is protected. `kept`: it is scheduled, and its newest good backup is no older than asked for.

    `copies` are storages that hold it; `days_without` days of the period without a backup; `actions` what people did about its backups.
    """

    kept: bool
    age_hours: float | None
    copies: int
    days_without: int
    encrypted: bool | None
    actions: int


class HistoryShown(Shown):
    """How many jobs of a type ended so on a day (UTC)."""

    day: date
    type: str
    status: str
    count: int
    mean_seconds: float | None


class ChangedFileShown(Shown):
    """A name that is `added`, `removed` or `changed`; sizes in bytes, null where it was not there or is no file."""

    path: str
    change: Literal["added", "removed", "changed"]
    size_before: int | None
    size_after: int | None


class TreeComparisonShown(Shown):
    """A volume or other tree of files: how many names differ, and the first thousand of them."""

    name: str
    added: int
    removed: int
    changed: int
    files: list[ChangedFileShown]


class DiskComparisonShown(Shown):
    """A disk: sizes and changed bytes; a size is null where the disk was not there."""

    name: str
    size_before: int | None
    size_after: int | None
    bytes_changed: int


class ComparisonShown(Shown):
    """What differs between two backups; `settings_changed` names their settings that do."""

    before: str
    after: str
    disks: list[DiskComparisonShown]
    trees: list[TreeComparisonShown]
    settings_changed: list[str]
