"""Schedules."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, status

from lab_backup.api.access import Audited, CanOperate, CanRead
from lab_backup.api.context import Db
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.work import JobShown, ScheduleCreate, SchedulePreview, ScheduleShown, ScheduleUpdate
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import Container, Storage, Vm
from lab_backup.catalog.queries import everything, get, refuse_taken
from lab_backup.catalog.queue import backup_job
from lab_backup.catalog.work import Schedule
from lab_backup.operations.prune import parse_zone
from lab_backup.policy.cron import next_runs
from lab_backup.repository.session import new_backup_id

router = APIRouter(tags=["schedules"])


async def source_row(db: AsyncSession, source_type: str, source_id: UUID) -> Vm | Container:
    """Return what a schedule or backup is of. Raises NotFoundError."""
    found: Vm | Container = await get(
        db, Vm if source_type == "vm" else Container, source_id, "VM" if source_type == "vm" else "container"
    )
    return found


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
    await source_row(db, body.source_type, body.source_id)
    await get(db, Storage, body.storage_backend_id, "storage")
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
    """Back up now what the schedule backs up."""
    row: Schedule = await get(db, Schedule, schedule_id, "schedule")
    source = await source_row(db, row.source_type, row.source_id)
    job = backup_job(
        row.source_type,
        source.id,
        source.name,
        row.storage_backend_id,
        backup_id=new_backup_id(),
        schedule=row,
        requested_by=actor.user,
    )
    db.add(job)
    await db.flush()
    await db.refresh(job)
    await audit(actor, "run", "schedule", schedule_id)
    return JobShown.model_validate(job)


@router.get("/schedules/{schedule_id}/preview")
async def preview(
    schedule_id: UUID, _: CanRead, db: Db, count: Annotated[int, Query(ge=1, le=100)] = 10
) -> SchedulePreview:
    """Tell when the schedule is due next."""
    row: Schedule = await get(db, Schedule, schedule_id, "schedule")
    return SchedulePreview(
        next_runs=next_runs(row.cron_expression, parse_zone(row.timezone), after=datetime.now(UTC), count=count)
    )
