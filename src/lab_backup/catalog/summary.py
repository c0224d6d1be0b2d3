"""What happened in a week, in a few lines, for people who do not look every day."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lab_backup.catalog.places import Storage
from lab_backup.catalog.work import CANCELLED, FAILED, INTERRUPTED, BackupRow, Job
from lab_backup.units import format_size

MOST = 20


def week(session: Session, since: datetime) -> list[str]:
    """Return the lines: what was backed up, what failed, how full the storages are."""
    made, stored, sources = session.execute(
        select(func.count(), func.sum(BackupRow.compressed_size), func.count(func.distinct(BackupRow.source_id))).where(
            BackupRow.completed_at >= since
        )
    ).one()
    lines = [f"{made} backups of {sources} sources, {format_size(int(stored or 0))} stored."]
    failed = session.execute(
        select(Job.title, func.count(), func.max(Job.error))
        .where(Job.completed_at >= since, Job.status.in_((FAILED, INTERRUPTED, CANCELLED)))
        .group_by(Job.title)
        .order_by(func.count().desc())
        .limit(MOST)
    ).all()
    lines += [f"{title}: failed {count} times, the last error: {error}" for title, count, error in failed]
    if not failed:
        lines.append("Nothing failed.")
    return [*lines, *_storages(session.scalars(select(Storage).order_by(Storage.name)).all())]


def _storages(rows: Sequence[Storage]) -> list[str]:
    return [f"Storage {row.name}: {row.problem or _fill(row)}" for row in rows]


def _fill(row: Storage) -> str:
    if row.used is None:
        return "not asked yet"
    return f"{format_size(row.used)} used" + (f" of {format_size(row.capacity)}" if row.capacity else "")
