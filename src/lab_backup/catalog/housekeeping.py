"""What the service forgets after a time: logs, ended jobs, news, sessions, moments of schedules, silent workers. The audit log is never cut: its chain begins at the first entry."""

from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from lab_backup.catalog.news import Notification
from lab_backup.catalog.people import LoginSession
from lab_backup.catalog.preferences import Preferences
from lab_backup.catalog.work import ENDED, Firing, Job, JobLog
from lab_backup.catalog.workers import forget_silent

SMALL = timedelta(days=1)  # jobs that only look at things
SERVED = timedelta(days=90)  # moments of schedules that were served
LOOKS = ("inventory", "usage", "notify", "heartbeat", "housekeeping", "report")
AT_ONCE = 10_000  # rows of one statement, so that nobody waits for it


def forget_old(session: Session, preferences: Preferences, now: datetime) -> dict[str, int]:
    """Forget it, and return how many rows of each went. Commits in parts."""
    logs_before = now - timedelta(days=preferences.keep_logs_days)
    jobs_before = now - timedelta(days=preferences.keep_jobs_days)
    news_before = now - timedelta(days=preferences.keep_news_days)
    ended = Job.status.in_(ENDED)
    found = {
        "job_logs": _cut(session, JobLog, JobLog.timestamp < logs_before),
        "jobs": _cut(
            session,
            Job,
            ended,
            or_(Job.completed_at < jobs_before, Job.type.in_(LOOKS) & (Job.completed_at < now - SMALL)),
        ),
        "notifications": _cut(session, Notification, Notification.created_at < news_before),
        "sessions": _cut(session, LoginSession, LoginSession.expires_at < now - SMALL),
    }
    session.execute(delete(Firing).where(Firing.due_at < now - SERVED))
    forget_silent(session, now)
    session.commit()
    return found


def _cut(session: Session, table: type[JobLog | Job | Notification | LoginSession], *when: object) -> int:
    count = 0
    while True:
        chosen = select(table.id).where(*when).limit(AT_ONCE)  # type: ignore[arg-type]  # conditions, of any column
        gone = session.execute(delete(table).where(table.id.in_(chosen)).returning(table.id)).all()
        session.commit()
        count += len(gone)
        if len(gone) < AT_ONCE:
            return count
