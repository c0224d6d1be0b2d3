"""Telling people something: it goes into their inboxes, and a job sends it through their channels."""

from sqlalchemy.orm import Session

from lab_backup.catalog.news import announce
from lab_backup.catalog.queue import new_job, waiting


def tell(session: Session, *, kind: str, severity: str, subject: str, message: str) -> bool:
    """Tell all who want to know of this severity; return whether there is anybody. The caller commits."""
    channels = announce(session, kind=kind, severity=severity, subject=subject, message=message)
    for channel in channels:
        if not waiting(session, f"notify/{channel}"):
            session.add(
                new_job(
                    "notify",
                    {"channel": str(channel)},
                    title="send messages",
                    lock_key=f"notify/{channel}",
                    priority=8,
                )
            )
    return bool(channels)
