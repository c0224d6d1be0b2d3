"""Who runs a job: a lease that is renewed, with an epoch so that one who lost it cannot write any more."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lab_backup.catalog.base import Json
from lab_backup.catalog.limits import ALWAYS, Room
from lab_backup.catalog.preferences import read_preferences
from lab_backup.catalog.work import QUEUED, RUNNING, Job, JobLog

LEASE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a job until it is lost."""

    job: UUID
    epoch: int
    owner: str


def claim(session: Session, job_id: UUID, owner: str) -> Lease | None:
    """Take a queued job; None where somebody else has it or works on the same thing, its host or storage takes no more at once, or is in maintenance. Commits."""
    room = Room.read(session, Job.status == RUNNING, alone=True)
    wanted = session.get(Job, job_id)
    if wanted is not None and wanted.status == QUEUED and (_rests(session, wanted) or not room.take(wanted)):
        _leave(session, job_id)
        return None
    taking = (
        update(Job)
        .where(Job.id == job_id, Job.status == QUEUED)
        .values(
            status=RUNNING,
            lease_owner=owner,
            lease_epoch=Job.lease_epoch + 1,
            lease_until=func.now() + LEASE,
            started_at=func.now(),
        )
        .returning(Job.lease_epoch)
    )
    try:
        epoch = session.scalar(taking)
        session.commit()
    except IntegrityError:  # another job of the same lock_key runs
        session.rollback()
        _leave(session, job_id)
        return None
    return None if epoch is None else Lease(job_id, epoch, owner)


def _rests(session: Session, job: Job) -> bool:
    """Whether maintenance has begun since the job was sent."""
    wanted = read_preferences(session)
    return job.type not in ALWAYS and (wanted.maintenance or str(job.details.get("host", "")) in wanted.resting)


def _leave(session: Session, job_id: UUID) -> None:
    """Let the job be sent again when there is room."""
    session.execute(update(Job).where(Job.id == job_id).values(dispatched_at=None))
    session.commit()


@dataclass(frozen=True, slots=True)
class Renewal:
    """A lease that was renewed, and whether the job was asked to stop (`cancel`, `interrupt`)."""

    stop: str | None


def renew(session: Session, lease: Lease, progress: Json) -> Renewal | None:
    """Hold on to the lease and store how far the job is; None where it is lost. Commits."""
    row = session.execute(
        update(Job)
        .where(Job.id == lease.job, Job.status == RUNNING, Job.lease_epoch == lease.epoch)
        .values(lease_until=func.now() + LEASE, progress=progress)
        .returning(Job.stop_requested)
    ).one_or_none()
    session.commit()
    return None if row is None else Renewal(row[0])


def finish(
    session: Session,
    lease: Lease,
    *,
    status: str,
    result: Json,
    progress: Json,
    error: str | None = None,
    hint: str | None = None,
) -> bool:
    """End the job; False where the lease was lost, and nothing written. The caller commits."""
    row = session.execute(
        update(Job)
        .where(Job.id == lease.job, Job.status == RUNNING, Job.lease_epoch == lease.epoch)
        .values(
            status=status,
            result=result,
            progress=progress,
            error=error,
            hint=hint,
            completed_at=func.now(),
            lease_until=None,
        )
        .returning(Job.id)
    ).one_or_none()
    return row is not None


def write_line(session: Session, job_id: UUID, level: str, message: str) -> None:
    """Add a line to the job's log. The caller commits."""
    session.add(JobLog(job_id=job_id, level=level, message=message))


def stop_all_of(session: Session, owner: str) -> int:
    """Ask every job that `owner` runs to let itself be interrupted; return how many. Commits."""
    asked = session.execute(
        update(Job)
        .where(Job.status == RUNNING, Job.lease_owner == owner)
        .values(stop_requested="interrupt")
        .returning(Job.id)
    ).all()
    session.commit()
    return len(asked)


def expired(session: Session, now: datetime) -> list[Job]:
    """Return the running jobs whose worker is gone, locked."""
    return list(
        session.scalars(
            select(Job).where(Job.status == RUNNING, Job.lease_until < now).with_for_update(skip_locked=True)
        )
    )
