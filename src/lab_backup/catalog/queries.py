"""What the API asks the catalog."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from lab_backup.catalog.housekeeping import LOOKS
from lab_backup.catalog.news import Notification, NotificationConfig
from lab_backup.catalog.people import ApiToken, AuditEntry, LoginSession, User
from lab_backup.catalog.places import SourceTag, Storage, StorageSample, WorkerRow
from lab_backup.catalog.sources import GONE, KINDS
from lab_backup.catalog.work import QUEUED, RUNNING, BackupRow, Job, JobLog, Schedule
from lab_backup.errors import NotFoundError, TargetExistsError, UsageError

SIMULATED = 1000  # backups that a preview of retention looks at


async def get(session: AsyncSession, table: type[Any], identity: UUID, what: str) -> Any:
    """Return a row. Raises NotFoundError."""
    row = await session.get(table, identity)
    if row is None:
        raise NotFoundError(f"there is no {what} {identity}")
    return row


async def released(session: AsyncSession, row: Any) -> Any:
    """Return a row that was read, for use while no connection is held: what takes its time must not take one."""
    session.expunge(row)
    await session.rollback()
    return row


async def only_host(session: AsyncSession, table: type[Any]) -> Any:
    """Return the one host of a kind. Raises UsageError where there are several or none."""
    rows = (await session.scalars(select(table).where(table.enabled).limit(2))).all()
    if len(rows) != 1:
        raise UsageError("there are several hosts, or none", hint="say which one as `host`")
    return rows[0]


async def refuse_taken(session: AsyncSession, column: Any, value: str, what: str, *, but: UUID | None = None) -> None:
    """Raise TargetExistsError where another row has this value already."""
    found = await session.scalar(select(column.class_.id).where(column == value))
    if found is not None and found != but:
        raise TargetExistsError(f"{what} {value!r} exists already", hint="choose another one, or change that one")


async def user_named(session: AsyncSession, name: str, *, lock: bool = False) -> User | None:
    """Return the user of this name."""
    statement = select(User).where(User.username == name)
    return (await session.scalars(statement.with_for_update() if lock else statement)).one_or_none()


async def count_users(session: AsyncSession) -> int:
    """Return how many users there are."""
    return await session.scalar(select(func.count()).select_from(User)) or 0


async def other_admins(session: AsyncSession, but: UUID) -> int:
    """Return how many administrators would be left without `but`."""
    return (
        await session.scalar(
            select(func.count()).select_from(User).where(User.role == "admin", User.enabled, User.id != but)
        )
        or 0
    )


async def session_with(session: AsyncSession, refresh_hash: str) -> LoginSession | None:
    """Return the session that this refresh token belongs to, be it the newest one or the one before; locked."""
    statement = select(LoginSession).where(
        or_(LoginSession.refresh_hash == refresh_hash, LoginSession.previous_hash == refresh_hash)
    )
    return (await session.scalars(statement.with_for_update())).one_or_none()


async def session_and_user(session: AsyncSession, identity: UUID) -> tuple[LoginSession, User] | None:
    """Return a sign-in and whose it is."""
    found = await session.execute(
        select(LoginSession, User).join(User, User.id == LoginSession.user_id).where(LoginSession.id == identity)
    )
    row = found.one_or_none()
    return None if row is None else (row[0], row[1])


async def token_with(session: AsyncSession, token_hash: str) -> ApiToken | None:
    """Return the API token with this hash."""
    return (await session.scalars(select(ApiToken).where(ApiToken.token_hash == token_hash))).one_or_none()


async def revoke_sessions(session: AsyncSession, user: UUID, now: datetime) -> None:
    """End all sessions of a user."""
    await session.execute(
        update(LoginSession)
        .where(LoginSession.user_id == user, LoginSession.revoked_at.is_(None))
        .values(revoked_at=now)
    )


def sessions_of(user: UUID, now: datetime) -> Select[Any]:
    """Return the living sessions of a user."""
    return select(LoginSession).where(
        LoginSession.user_id == user, LoginSession.revoked_at.is_(None), LoginSession.expires_at > now
    )


def tokens_of(user: UUID) -> Select[Any]:
    """Return the API tokens of a user."""
    return select(ApiToken).where(ApiToken.user_id == user)


def jobs(*, status: str | None, kind: str | None, schedule: UUID | None) -> Select[Any]:
    """Return jobs; those that only look at hosts and storages are left out unless asked for."""
    statement = select(Job)
    if status is not None:
        statement = statement.where(Job.status == status)
    if schedule is not None:
        statement = statement.where(Job.schedule_id == schedule)
    return statement.where(Job.type == kind) if kind is not None else statement.where(Job.type.not_in(LOOKS))


def lines_of(job: UUID) -> Select[Any]:
    """Return the log of a job."""
    return select(JobLog).where(JobLog.job_id == job)


def backups(
    *, source: str | None, source_type: str | None, storage: UUID | None, status: str | None, tag: str | None
) -> Select[Any]:
    """Return backups; `source` is a name or a source's identity."""
    statement = select(BackupRow) if tag is None else select(BackupRow).where(BackupRow.tags.contains([tag]))
    for column, value in (
        (BackupRow.source_type, source_type),
        (BackupRow.storage_backend_id, storage),
        (BackupRow.status, status),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return (
        statement
        if source is None
        else statement.where(or_(BackupRow.source_name == source, BackupRow.source_id == source))
    )


def backups_under(schedule: Schedule) -> Select[Any]:
    """Return the newest backups that the retention of a schedule decides about: all of the sources that it has backed up, in its storage."""
    mine = aliased(BackupRow)
    made = select(mine.id).where(
        mine.schedule_id == schedule.id,
        mine.source_type == BackupRow.source_type,
        mine.source_id == BackupRow.source_id,
    )
    return (
        select(BackupRow)
        .where(BackupRow.storage_backend_id == schedule.storage_backend_id, made.exists())
        .order_by(BackupRow.completed_at.desc())
        .limit(SIMULATED)
    )


def samples_of(storage: UUID) -> Select[Any]:
    """Return day and bytes of the last ninety samples of a storage, oldest first."""
    newest = (
        select(StorageSample.day, StorageSample.used)
        .where(StorageSample.storage_id == storage)
        .order_by(StorageSample.day.desc())
        .limit(90)
        .subquery()
    )
    return select(newest.c.day, newest.c.used).order_by(newest.c.day)


def everything(table: type[Any]) -> Select[Any]:
    """Return all rows of a table."""
    return select(table)


def channels_of(user: UUID) -> Select[Any]:
    """Return the channels of a user."""
    return select(NotificationConfig).where(NotificationConfig.user_id == user)


def inbox_of(user: UUID) -> Select[Any]:
    """Return what a user was told."""
    return select(Notification).where(Notification.user_id == user)


async def replace_tags(session: AsyncSession, kind: str, source: UUID, tags: list[str]) -> list[SourceTag]:
    """Give a source these tags and no others."""
    await session.execute(delete(SourceTag).where(SourceTag.source_type == kind, SourceTag.source_id == source))
    rows = [SourceTag(source_type=kind, source_id=source, tag=tag) for tag in tags]
    session.add_all(rows)
    await session.flush()
    return rows


async def put(session: AsyncSession, job: Job) -> Job:
    """Queue a job and return it with what the database gave it."""
    session.add(job)
    await session.flush()
    await session.refresh(job)
    return job


def inbox_since(user: UUID, moment: datetime) -> Select[Any]:
    """Return what was put into the inbox of a user after a moment, oldest first."""
    return (
        select(Notification)
        .where(Notification.user_id == user, Notification.created_at > moment)
        .order_by(Notification.created_at)
    )


async def is_asked(session: AsyncSession, lock_key: str) -> bool:
    """Whether a job with this key waits or runs."""
    found = select(Job.id).where(Job.lock_key == lock_key, Job.status.in_((QUEUED, RUNNING))).limit(1)
    return await session.scalar(found) is not None


async def is_used(session: AsyncSession, storage: UUID) -> bool:
    """Whether schedules or jobs still need a storage."""
    uses = or_(Schedule.storage_backend_id == storage, Schedule.replicate_to == storage)
    schedule = await session.scalar(select(Schedule.id).where(uses).limit(1))
    job = await session.scalar(
        select(Job.id).where(Job.storage_backend_id == storage, Job.status.in_((QUEUED, RUNNING))).limit(1)
    )
    return schedule is not None or job is not None


async def cancel_queued(session: AsyncSession, job: UUID, now: datetime) -> bool:
    """Cancel a job that has not begun; False where it has."""
    done = await session.execute(
        update(Job)
        .where(Job.id == job, Job.status == QUEUED)
        .values(status="cancelled", completed_at=now, error="cancelled before it began")
        .returning(Job.id)
    )
    return done.one_or_none() is not None


async def request_stop(session: AsyncSession, job: UUID) -> bool:
    """Ask a running job to stop; False where none runs."""
    done = await session.execute(
        update(Job).where(Job.id == job, Job.status == RUNNING).values(stop_requested="cancel").returning(Job.id)
    )
    return done.one_or_none() is not None


async def figures(session: AsyncSession) -> dict[str, Any]:
    """Return what there is of everything, for metrics. Times as seconds since 1970, sizes in bytes."""
    by_type = (await session.execute(select(Job.type, Job.status, func.count()).group_by(Job.type, Job.status))).all()
    last = (
        await session.execute(
            select(BackupRow.source_type, BackupRow.source_name, func.max(BackupRow.completed_at)).group_by(
                BackupRow.source_type, BackupRow.source_name
            )
        )
    ).all()
    storages = (await session.scalars(select(Storage))).all()
    sizes = (
        await session.execute(
            select(func.count(), func.sum(BackupRow.size), func.sum(BackupRow.compressed_size)).select_from(BackupRow)
        )
    ).one()
    seconds = func.avg(func.extract("epoch", Job.completed_at - Job.started_at))
    recent = Job.completed_at >= func.now() - timedelta(days=1)
    took = (await session.execute(select(Job.type, seconds).where(recent).group_by(Job.type))).all()
    running = (
        await session.scalars(select(WorkerRow).where(WorkerRow.seen_at >= func.now() - timedelta(minutes=1)))
    ).all()
    return {
        "durations": [{"type": kind, "seconds": round(float(mean), 3)} for kind, mean in took if mean is not None],
        "workers": [{"name": row.name, "version": row.version, "figures": row.figures} for row in running],
        "jobs": [{"type": kind, "status": status, "count": count} for kind, status, count in by_type],
        "queue_depth": sum(count for _, status, count in by_type if status == QUEUED),
        "last_success": [
            {"source_type": kind, "source": name, "time": moment.timestamp()} for kind, name, moment in last
        ],
        "storages": [
            {"name": row.name, "used": row.used, "capacity": row.capacity, "reachable": row.problem is None}
            for row in storages
        ],
        "backups": {"count": sizes[0], "bytes_total": int(sizes[1] or 0), "bytes_stored": int(sizes[2] or 0)},
    }


async def protection(session: AsyncSession) -> list[dict[str, Any]]:
    """Return every source that is known, with its newest good backup and whether a schedule serves it.

    Volumes are there where they have backups of their own, since those that containers mount come with these; so are containers in pods.
    """
    found: list[dict[str, Any]] = []
    for kind, meant in KINDS.items():
        table, host, foreign = meant.table, meant.hosts, meant.host
        newest = (
            select(
                BackupRow.source_name,
                func.max(BackupRow.completed_at).label("at"),
                func.max(BackupRow.verified_at).label("verified"),
            )
            .where(BackupRow.source_type == kind, BackupRow.status == "complete")
            .group_by(BackupRow.source_name)
            .subquery()
        )
        scheduled = select(Schedule.id).where(Schedule.enabled, or_(*_served(kind, table, foreign))).exists()
        rows = await session.execute(
            select(table.id, table.name, host.name, newest.c.at, newest.c.verified, scheduled)
            .join(host, host.id == foreign)
            .outerjoin(newest, newest.c.source_name == table.name)
            .where(table.state != GONE, *_shown_when(kind, table, newest.c.at))
            .order_by(table.name)
        )
        found += [
            {
                "source_type": kind,
                "source_id": identity,
                "name": name,
                "host": place,
                "last_backup": at,
                "last_verified": verified,
                "scheduled": has,
            }
            for identity, name, place, at, verified, has in rows
        ]
    return found


def _served(kind: str, table: Any, host: Any) -> list[Any]:
    """Return what makes a schedule serve a source of this kind."""
    tagged = select(SourceTag.source_id).where(SourceTag.source_type == kind, SourceTag.tag == Schedule.source_tag)
    group = "kvm_host" if kind == "vm" else "podman_host"
    ways = [
        (Schedule.source_type == kind) & (Schedule.source_id == table.id),
        (Schedule.source_type == "tag") & table.id.in_(tagged),
    ]
    if kind != "volume":
        ways += [(Schedule.source_type == group) & (Schedule.source_id == host), Schedule.source_type == "all"]
    return ways


def _shown_when(kind: str, table: Any, newest: Any) -> list[Any]:
    if kind == "volume":
        return [newest.is_not(None)]
    return [or_(table.pod == "", newest.is_not(None))] if kind == "container" else []


async def compliance(session: AsyncSession, since: datetime, now: datetime) -> list[dict[str, Any]]:
    """Return, of every source that is known, how it is protected.

    Besides what `protection` says: the age of its newest good backup, in how many storages it has some, how many days since `since` were without one,
    whether all of them are encrypted, and how often people did something about them, by the audit log.
    """
    found = []
    for row in await protection(session):
        kind, name = row["source_type"], row["name"]
        made = (
            await session.execute(
                select(
                    func.count(func.distinct(BackupRow.storage_backend_id)),
                    func.count(func.distinct(func.date_trunc("day", BackupRow.completed_at, "UTC"))).filter(
                        BackupRow.completed_at >= since
                    ),
                    func.bool_and(Storage.passphrase.is_not(None)),
                )
                .join(Storage, Storage.id == BackupRow.storage_backend_id)
                .where(BackupRow.source_type == kind, BackupRow.source_name == name, BackupRow.status == "complete")
            )
        ).one()
        actions = await session.scalar(
            select(func.count())
            .select_from(AuditEntry)
            .where(AuditEntry.timestamp >= since, AuditEntry.details["source"].astext == name)
        )
        days = max(1, (now - since).days)
        found.append(
            {
                **row,
                "age_hours": None
                if row["last_backup"] is None
                else round((now - row["last_backup"]).total_seconds() / 3600, 1),
                "copies": made[0],
                "days_without": max(0, days - made[1]),
                "encrypted": bool(made[2]) if made[0] else None,
                "actions": actions or 0,
            }
        )
    return found


async def job_history(session: AsyncSession, since: datetime) -> list[dict[str, Any]]:
    """Return how many jobs of each type ended how on each day since then (UTC), with their mean duration in seconds."""
    day = func.date_trunc("day", Job.completed_at, "UTC")
    seconds = func.avg(func.extract("epoch", Job.completed_at - Job.started_at))
    rows = await session.execute(
        select(day, Job.type, Job.status, func.count(), seconds)
        .where(Job.completed_at >= since, Job.type.not_in(LOOKS))
        .group_by(day, Job.type, Job.status)
        .order_by(day, Job.type, Job.status)
    )
    return [
        {
            "day": moment.date(),
            "type": kind,
            "status": status,
            "count": count,
            "mean_seconds": None if mean is None else round(float(mean), 1),
        }
        for moment, kind, status, count, mean in rows
    ]
