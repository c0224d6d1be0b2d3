"""The queue of jobs: what is put in, and what may be sent to a worker next."""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, cast, func, or_, select
from sqlalchemy.orm import Session, aliased

from lab_backup.catalog.base import Json
from lab_backup.catalog.leases import expired, write_line
from lab_backup.catalog.limits import ALWAYS, Room
from lab_backup.catalog.sources import Source
from lab_backup.catalog.work import INTERRUPTED, QUEUED, RUNNING, Job, Schedule

SEND_AGAIN = timedelta(seconds=60)
ATTEMPTS = 2
PATIENCE = 4  # attempts at what fails for a reason that may pass
LOOKED_AT = 500  # jobs beyond those that may be sent: some wait for others on the same thing
BY_HAND = {"restore"}  # done once more only when a person says so: what it had begun is theirs to look at


def new_job(
    kind: str,
    details: Json,
    *,
    title: str,
    lock_key: str | None = None,
    storage: UUID | None = None,
    schedule: UUID | None = None,
    requested_by: UUID | None = None,
    priority: int = 0,
) -> Job:
    """Return a job to add to a session. Of one `lock_key` one job runs at a time; a higher priority goes first."""
    return Job(
        type=kind,
        details=details,
        title=title,
        lock_key=lock_key,
        storage_backend_id=storage,
        schedule_id=schedule,
        requested_by=requested_by,
        priority=priority,
    )


def backup_job(
    source: Source,
    storage: UUID,
    *,
    backup_id: str,
    schedule: Schedule | None = None,
    requested_by: UUID | None = None,
    full: bool = False,
) -> Job:
    """Return the job that backs a source up. The backup's id is decided before, so that a second try can find what the first one published."""
    details = {
        "source_type": source.kind,
        "source_id": str(source.id),
        "host": str(source.host),
        "backup_id": backup_id,
        "full": full,
        "verify_after": schedule is not None and schedule.verify_after,
        "replicate_to": None if schedule is None or schedule.replicate_to is None else str(schedule.replicate_to),
    }
    return new_job(
        "backup",
        details,
        title=f"back up {source.name}",
        lock_key=f"{source.kind}/{source.id}",
        storage=storage,
        schedule=None if schedule is None else schedule.id,
        requested_by=requested_by,
        priority=0 if requested_by is None else 1,
    )


def take_next(
    session: Session, *, now: datetime, at_once: int, maintenance: bool = False, resting: Collection[str] = ()
) -> list[Job]:
    """Return queued jobs to send to workers, so that no more run than `at_once` and their hosts and storages take, and mark them as sent. The caller commits, then sends.

    In `maintenance`, and on hosts that are `resting` (their ids), only those are taken that look at things. One that nobody took within SEND_AGAIN is sent again: what a broker forgets is not lost.
    """
    stale = now - SEND_AGAIN
    counted = or_(Job.status == RUNNING, (Job.status == QUEUED) & (Job.dispatched_at >= stale))
    left = at_once - (session.scalar(select(func.count()).select_from(Job).where(counted)) or 0)
    if left <= 0:
        return []
    room = Room.read(session, counted)
    other = aliased(Job)
    sent_or_running = or_(other.status == RUNNING, (other.status == QUEUED) & (other.dispatched_at >= stale))
    busy = select(other.id).where(sent_or_running, other.lock_key == Job.lock_key).exists()
    no_host = [*resting, *room.full]
    chosen = session.scalars(
        select(Job)
        .where(
            Job.status == QUEUED,
            or_(Job.dispatched_at.is_(None), Job.dispatched_at < stale),
            or_(Job.not_before.is_(None), Job.not_before <= now),
            ~busy,
            *([Job.type.in_(ALWAYS)] if maintenance else []),
            *([or_(Job.type.in_(ALWAYS), _free(no_host, room.full))] if no_host else []),
        )
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(left + LOOKED_AT)
        .with_for_update(skip_locked=True)
    )
    keys: set[str] = set()
    sent: list[Job] = []
    for job in chosen:
        if len(sent) == left:
            break
        if (job.lock_key is not None and job.lock_key in keys) or not room.take(job):
            continue
        keys.add(job.lock_key or "")
        job.dispatched_at = now
        sent.append(job)
    return sent


def _free(no_host: list[str], no_storage: list[str]) -> ColumnElement[bool]:
    """Whether a job is on none of these hosts, and in none of these storages."""
    storage = func.coalesce(cast(Job.storage_backend_id, Text), "")
    return and_(func.coalesce(Job.details["host"].astext, "").not_in(no_host), storage.not_in(no_storage))


def end_abandoned(session: Session, now: datetime) -> list[Job]:
    """Call jobs interrupted whose worker is gone, and queue them once more; return them. The caller commits."""
    ended = expired(session, now)
    for job in ended:
        job.status, job.completed_at, job.lease_until = INTERRUPTED, now, None
        job.error = "the worker that ran it is gone"
        write_line(session, job.id, "error", job.error)
        again = retry_of(job)
        if again is not None:
            session.add(again)
    return ended


def retry_of(job: Job, *, requested_by: UUID | None = None, patient: bool = False) -> Job | None:
    """Return a new job that does the same; None where it was tried often enough, `patient` is not said, and nobody asks for it."""
    if (
        requested_by is None
        and not patient
        and (job.attempt >= ATTEMPTS or job.stop_requested == "cancel" or job.type in BY_HAND)
    ):
        return None
    return Job(
        type=job.type,
        details=job.details,
        title=job.title,
        lock_key=job.lock_key,
        storage_backend_id=job.storage_backend_id,
        schedule_id=job.schedule_id,
        requested_by=requested_by or job.requested_by,
        priority=job.priority,
        retry_of=job.id,
        attempt=job.attempt + 1,
    )


def later(job: Job, now: datetime) -> Job | None:
    """Return a job that does the same after a while, ever longer (1, 4, 16 minutes); None where it was tried often enough, or is tried soon anyway."""
    if job.type in BY_HAND | set(ALWAYS) or job.stop_requested == "cancel" or job.attempt >= PATIENCE:
        return None
    again = retry_of(job, requested_by=job.requested_by, patient=True)
    if again is not None:
        again.not_before = now + timedelta(minutes=4 ** (job.attempt - 1))
    return again


def waiting_or_running(session: Session, lock_key: str, kind: str) -> bool:
    """Whether such a job is there already."""
    found = select(Job.id).where(Job.lock_key == lock_key, Job.type == kind, Job.status.in_((QUEUED, RUNNING))).limit(1)
    return session.scalar(found) is not None


def waiting(session: Session, lock_key: str) -> bool:
    """Whether a job with this key is in the queue and has not begun: it will see what is new."""
    return session.scalar(select(Job.id).where(Job.lock_key == lock_key, Job.status == QUEUED).limit(1)) is not None
