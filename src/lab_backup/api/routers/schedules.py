"""Schedules."""

from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, status

from lab_backup.api.access import Actor, Audited, CanOperate, CanRead
from lab_backup.api.context import Db
from lab_backup.api.problems import ForbiddenError
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.work import (
    JobShown,
    KeptShown,
    ScheduleCreate,
    SchedulePreview,
    ScheduleShown,
    ScheduleUpdate,
)
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import KvmHost, PodmanHost, Storage
from lab_backup.catalog.queries import backups_under, everything, get, put, refuse_taken
from lab_backup.catalog.queue import backup_job, new_job
from lab_backup.catalog.sources import KINDS, members, source_of
from lab_backup.catalog.work import BackupRow, Schedule
from lab_backup.errors import UsageError
from lab_backup.policy.cron import next_runs, parse_zone
from lab_backup.policy.retention import Point, Policy, select
from lab_backup.repository.session import new_backup_id
from lab_backup.security.roles import Role

router = APIRouter(tags=["schedules"])


async def source_row(db: AsyncSession, source_type: str, source_id: UUID) -> Any:
    """Return what a backup is of, by its row. Raises NotFoundError."""
    kind = KINDS[source_type]
    return await get(db, kind.table, source_id, kind.word)


async def _check_covered(db: AsyncSession, body: ScheduleCreate) -> None:
    """Raise UsageError or NotFoundError where a schedule does not say what it covers."""
    needs_id = body.source_type not in {"tag", "all"}
    if needs_id != (body.source_id is not None) or (body.source_type == "tag") != (body.source_tag is not None):
        raise UsageError(
            f"a schedule of {body.source_type!r} does not fit what else it says of its sources",
            hint="a source or host needs `source_id`, `tag` needs `source_tag`, `all` neither",
        )
    if body.source_id is None:
        return
    if body.source_type in KINDS:
        await source_row(db, body.source_type, body.source_id)
    else:
        await get(db, KvmHost if body.source_type == "kvm_host" else PodmanHost, body.source_id, "host")


async def _check_copy(
    db: AsyncSession, actor: Actor, to: UUID | None, storage: UUID, before: UUID | None = None
) -> None:
    if to is not None:
        await get(db, Storage, to, "storage")
    if to is not None and to != before and not actor.role.includes(Role.ADMIN):
        raise ForbiddenError(
            "only an administrator may say where backups are copied to", hint="leave it out, or ask one"
        )
    if to == storage:
        raise UsageError("backups are not copied to the storage that they are in", hint="choose another one")


@router.get("/schedules")
async def list_schedules(_: CanRead, db: Db, paging: InPages) -> Listed[ScheduleShown]:
    """List schedules."""
    found = await page(
        db,
        everything(Schedule),
        Schedule.created_at,
        Schedule.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[ScheduleShown.model_validate(row) for row in found.items], next=found.next)


@router.post("/schedules", status_code=status.HTTP_201_CREATED)
async def create_schedule(body: ScheduleCreate, actor: CanOperate, db: Db, audit: Audited) -> ScheduleShown:
    """Make a schedule. It is served from now on, within seconds."""
    await refuse_taken(db, Schedule.name, body.name, "the schedule")
    await _check_covered(db, body)
    await get(db, Storage, body.storage_backend_id, "storage")
    await _check_copy(db, actor, body.replicate_to, body.storage_backend_id)
    next_runs(body.cron_expression, parse_zone(body.timezone), after=datetime.now(UTC), count=1)
    row = Schedule(
        **body.model_dump(exclude={"retention_config"}),
        retention_config=body.retention_config.model_dump(),
        looked_at=datetime.now(UTC),
    )
    db.add(row)
    await db.flush()
    await db.refresh(row)
    await audit(actor, "created", "schedule", row.id, name=row.name, cron=row.cron_expression)
    return ScheduleShown.model_validate(row)


@router.get("/schedules/{schedule_id}")
async def show_schedule(schedule_id: UUID, _: CanRead, db: Db) -> ScheduleShown:
    """Show a schedule."""
    return ScheduleShown.model_validate(await get(db, Schedule, schedule_id, "schedule"))


@router.put("/schedules/{schedule_id}")
async def update_schedule(
    schedule_id: UUID, body: ScheduleUpdate, actor: CanOperate, db: Db, audit: Audited
) -> ScheduleShown:
    """Change a schedule. It is served so from now on, within seconds."""
    row: Schedule = await get(db, Schedule, schedule_id, "schedule")
    if body.name is not None:
        await refuse_taken(db, Schedule.name, body.name, "the schedule", but=schedule_id)
    if body.storage_backend_id is not None:
        await get(db, Storage, body.storage_backend_id, "storage")
    to, storage = body.replicate_to or row.replicate_to, body.storage_backend_id or row.storage_backend_id
    await _check_copy(db, actor, to, storage, row.replicate_to)
    next_runs(
        body.cron_expression or row.cron_expression,
        parse_zone(body.timezone or row.timezone),
        after=datetime.now(UTC),
        count=1,
    )
    for name, value in body.model_dump(exclude_none=True).items():
        setattr(row, name, value)
    row.looked_at = datetime.now(UTC)
    await audit(actor, "changed", "schedule", schedule_id, fields=", ".join(sorted(body.model_fields_set)))
    return ScheduleShown.model_validate(row)


@router.delete("/schedules/{schedule_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_schedule(schedule_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> None:
    """Remove a schedule. Its backups stay, and nothing removes them any more."""
    row = await get(db, Schedule, schedule_id, "schedule")
    await db.delete(row)
    await audit(actor, "deleted", "schedule", schedule_id, name=row.name)


@router.post("/schedules/{schedule_id}/run", status_code=status.HTTP_202_ACCEPTED)
async def run_schedule(schedule_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Back up now what the schedule backs up. Where that is more than one source, the job queues a job for each."""
    row: Schedule = await get(db, Schedule, schedule_id, "schedule")
    if row.source_type in KINDS and row.source_id is not None:
        source = await source_row(db, row.source_type, row.source_id)
        job = backup_job(
            source_of(row.source_type, source),
            row.storage_backend_id,
            backup_id=new_backup_id(),
            schedule=row,
            requested_by=actor.user,
        )
    else:
        job = new_job(
            "schedule",
            {},
            title=f"run {row.name}",
            lock_key=f"schedule/{row.id}",
            storage=row.storage_backend_id,
            schedule=row.id,
            requested_by=actor.user,
            priority=1,
        )
    await audit(actor, "run", "schedule", schedule_id)
    return JobShown.model_validate(await put(db, job))


@router.get("/schedules/{schedule_id}/preview")
async def preview(
    schedule_id: UUID, _: CanRead, db: Db, count: Annotated[int, Query(ge=1, le=100)] = 10
) -> SchedulePreview:
    """Tell when the schedule is due next, what it backs up, and what its retention would keep of what is there."""
    row: Schedule = await get(db, Schedule, schedule_id, "schedule")
    zone, now = parse_zone(row.timezone), datetime.now(UTC)
    sources = await db.run_sync(lambda session: [f"{source.kind}/{source.name}" for source in members(session, row)])
    return SchedulePreview(
        next_runs=next_runs(row.cron_expression, zone, after=now, count=count),
        sources=sources,
        retention=_simulated(list(await db.scalars(backups_under(row))), Policy(**row.retention_config), now, zone),
    )


def _simulated(rows: list[BackupRow], policy: Policy, now: datetime, zone: tzinfo) -> list[KeptShown]:
    """Return what the policy would do with these backups now; one without rules keeps everything."""
    points = [
        Point(
            id=str(row.id),
            source=(row.source_type, row.source_id),
            time=row.completed_at,
            protected=row.protected,
            deleted=row.deleted_at is not None,
            good=False if row.status == "damaged" else True if row.verified_at else None,
        )
        for row in rows
    ]
    decided = None if policy.empty else select(points, policy, now=now, zone=zone)
    return [
        KeptShown(
            backup=row.id,
            source_name=row.source_name,
            completed_at=row.completed_at,
            kept=decided is None or decided[str(row.id)].outcome == "keep",
            reasons=["every backup stays"] if decided is None else list(decided[str(row.id)].reasons),
        )
        for row in rows
    ]
