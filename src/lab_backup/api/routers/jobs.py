"""Jobs: what was done, what is being done, and how far it is."""

from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, status

from lab_backup.api.access import Audited, CanOperate, CanRead
from lab_backup.api.context import Db
from lab_backup.api.problems import ForbiddenError
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.work import JobShown, LineShown
from lab_backup.catalog.paging import page
from lab_backup.catalog.queries import cancel_queued, get, jobs, lines_of, request_stop
from lab_backup.catalog.queue import retry_of
from lab_backup.catalog.work import ENDED, Job, JobLog
from lab_backup.errors import BusyError, UsageError
from lab_backup.security.roles import Role

ADMINISTRATORS = {"gc", "rebuild-catalog", "replicate", "prune", "housekeeping", "report", "heartbeat"}
"""Types of jobs that only they begin."""

router = APIRouter(tags=["jobs"])


@router.get("/jobs")
async def list_jobs(
    _: CanRead,
    db: Db,
    paging: InPages,
    status: str | None = None,
    type: str | None = None,  # noqa: A002  the word of the API
    schedule: UUID | None = None,
) -> Listed[JobShown]:
    """List jobs. Those that look at hosts and storages in the background are left out unless `type` asks for them."""
    statement = jobs(status=status, kind=type, schedule=schedule)
    found = await page(
        db, statement, Job.created_at, Job.id, cursor=paging.cursor, limit=paging.limit, order=paging.order
    )
    return Listed(items=[JobShown.model_validate(vars(row)) for row in found.items], next=found.next)


@router.get("/jobs/{job_id}")
async def show_job(job_id: UUID, _: CanRead, db: Db) -> JobShown:
    """Show a job."""
    return JobShown.model_validate(await get(db, Job, job_id, "job"))


@router.get("/jobs/{job_id}/logs")
async def job_logs(job_id: UUID, _: CanRead, db: Db, paging: InPages) -> Listed[LineShown]:
    """List the lines of a job's log."""
    await get(db, Job, job_id, "job")
    found = await page(
        db, lines_of(job_id), JobLog.timestamp, JobLog.id, cursor=paging.cursor, limit=paging.limit, order=paging.order
    )
    return Listed(items=[LineShown.model_validate(vars(row)) for row in found.items], next=found.next)


@router.post("/jobs/{job_id}/cancel", status_code=status.HTTP_202_ACCEPTED)
async def cancel_job(job_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Cancel a job: at once where it waits, within seconds where it runs; what it had begun is cleaned up."""
    job: Job = await get(db, Job, job_id, "job")
    if not await cancel_queued(db, job_id, datetime.now(UTC)) and not await request_stop(db, job_id):
        raise BusyError(f"the job has ended: {job.status}")
    await audit(actor, "cancel", "job", job_id)
    await db.refresh(job)
    return JobShown.model_validate(job)


@router.post("/jobs/{job_id}/retry", status_code=status.HTTP_202_ACCEPTED)
async def retry_job(job_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Do the same once more, as a new job."""
    job: Job = await get(db, Job, job_id, "job")
    if job.status not in ENDED:
        raise BusyError(f"the job has not ended: it is {job.status}", hint="wait, or cancel it")
    powerful = job.type in ADMINISTRATORS or job.details.get("trusted") or job.details.get("directory")
    if powerful and not actor.role.includes(Role.ADMIN):
        raise ForbiddenError("only an administrator may begin this", hint="ask one")
    if job.details.get("overwrite"):
        raise UsageError("this restore replaces something", hint="begin it anew, where that is confirmed")
    again = retry_of(job, requested_by=actor.user)
    db.add(again)
    await db.flush()
    await db.refresh(again)
    await audit(actor, "retry", "job", job_id)
    return JobShown.model_validate(again)
