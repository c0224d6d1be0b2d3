"""Schedules, jobs and backups."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from lab_backup.catalog.base import Base, Json, Row

QUEUED, RUNNING = "queued", "running"
SUCCEEDED, WARNINGS, FAILED = "succeeded", "succeeded with warnings", "failed"
CANCELLED, INTERRUPTED = "cancelled", "interrupted"
ENDED = (SUCCEEDED, WARNINGS, FAILED, CANCELLED, INTERRUPTED)


class Schedule(Row):
    """When to back up what, and what of it to keep. The cron expression is in `timezone`.

    `source_type` and `source_id` name a source by its row, or `kvm_host` and `podman_host` all that runs on a host, or `tag` all sources with
    `source_tag`, or `all` everything. Up to `jitter_seconds` later than due it begins, so that not all do at once. After the backup it is verified
    (`verify_after`) and copied to another storage (`replicate_to`).
    """

    __tablename__ = "backup_schedules"

    name: Mapped[str] = mapped_column(unique=True)
    source_type: Mapped[str]
    source_id: Mapped[UUID | None]
    source_tag: Mapped[str | None]
    schedule_type: Mapped[str] = mapped_column(default="cron")
    cron_expression: Mapped[str]
    timezone: Mapped[str] = mapped_column(default="UTC")
    retention_config: Mapped[Json] = mapped_column(default=dict)
    storage_backend_id: Mapped[UUID] = mapped_column(ForeignKey("storage_backends.id"), index=True)
    enabled: Mapped[bool] = mapped_column(default=True)
    verify_after: Mapped[bool] = mapped_column(default=False)
    replicate_to: Mapped[UUID | None] = mapped_column(ForeignKey("storage_backends.id"))
    jitter_seconds: Mapped[int] = mapped_column(default=0, server_default="0")
    looked_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Firing(Base):
    """A moment at which a schedule was due. Unique, so that two dispatchers cannot both serve it."""

    __tablename__ = "schedule_firings"

    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("backup_schedules.id", ondelete="CASCADE"), primary_key=True)
    due_at: Mapped[datetime] = mapped_column(primary_key=True)
    job_id: Mapped[UUID | None]


class Job(Row):
    """Something to do. A worker holds it by a lease until `lease_until`, and `lease_epoch` tells its writes from those of one who held it before.

    `lock_key` names what it works on: of one name one job runs at a time. `stop_requested` is `cancel` or `interrupt`. `details` is what to do; `result` what came of it.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_running_lock_key", "lock_key", unique=True, postgresql_where=text("status = 'running'")),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        Index("ix_jobs_status_created_at_id", "status", "created_at", "id"),
        Index("ix_jobs_type_created_at_id", "type", "created_at", "id"),
        Index("ix_jobs_lock_key_created_at", "lock_key", "created_at"),
        Index("ix_jobs_completed_at", "completed_at"),
    )

    type: Mapped[str]
    status: Mapped[str] = mapped_column(default=QUEUED)
    priority: Mapped[int] = mapped_column(default=0)
    lock_key: Mapped[str | None]
    title: Mapped[str] = mapped_column(default="")
    storage_backend_id: Mapped[UUID | None] = mapped_column(index=True)
    schedule_id: Mapped[UUID | None] = mapped_column(index=True)
    requested_by: Mapped[UUID | None]
    retry_of: Mapped[UUID | None]
    attempt: Mapped[int] = mapped_column(default=1)
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    dispatched_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    error: Mapped[str | None]
    hint: Mapped[str | None]
    details: Mapped[Json] = mapped_column("metadata", default=dict)
    result: Mapped[Json] = mapped_column(default=dict)
    progress: Mapped[Json] = mapped_column(default=dict)
    stop_requested: Mapped[str | None]
    lease_owner: Mapped[str | None]
    lease_epoch: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]


class JobLog(Base):
    """A line of a job's log."""

    __tablename__ = "job_logs"
    __table_args__ = (Index("ix_job_logs_job_id_timestamp_id", "job_id", "timestamp", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    timestamp: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    level: Mapped[str]
    message: Mapped[str]


class BackupRow(Row):
    """What the repository says of a backup. It can be made again from there. `source_id` is the source's own identity; sizes in bytes."""

    __tablename__ = "backups"
    __table_args__ = (
        UniqueConstraint("storage_backend_id", "backup_id"),
        Index("ix_backups_source_completed", "source_type", "source_id", "completed_at"),
        Index("ix_backups_completed_at_id", "completed_at", "id"),
        Index("ix_backups_status_completed", "status", "completed_at", "id"),
        Index("ix_backups_storage_completed", "storage_backend_id", "completed_at", "id"),
        Index("ix_backups_source_name_completed", "source_name", "completed_at", "id"),
        Index("ix_backups_source_id_completed", "source_id", "completed_at", "id"),
        Index("ix_backups_source_type_completed", "source_type", "completed_at", "id"),
        Index("ix_backups_source_name_id", "source_name", "id"),
        Index("ix_backups_size_id", "size", "id"),
        Index("ix_backups_compressed_size_id", "compressed_size", "id"),
        Index("ix_backups_tags", "tags", postgresql_using="gin", postgresql_ops={"tags": "jsonb_path_ops"}),
    )

    backup_id: Mapped[str] = mapped_column(index=True)
    schedule_id: Mapped[UUID | None] = mapped_column(index=True)
    source_type: Mapped[str]
    source_id: Mapped[str]
    source_name: Mapped[str]
    backup_type: Mapped[str]
    consistency: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(default=list)
    status: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    compressed_size: Mapped[int] = mapped_column(BigInteger)
    storage_backend_id: Mapped[UUID] = mapped_column(ForeignKey("storage_backends.id", ondelete="CASCADE"))
    storage_path: Mapped[str]
    checksum: Mapped[str]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    verified_at: Mapped[datetime | None]
    protected: Mapped[bool] = mapped_column(default=False)
    deleted_at: Mapped[datetime | None]
    details: Mapped[Json] = mapped_column("metadata", default=dict)
