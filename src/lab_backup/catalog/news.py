"""Channels, and what was or is to be told through them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from lab_backup.catalog.base import Json, Row
from lab_backup.catalog.people import User
from lab_backup.catalog.work import ENDED, FAILED, INTERRUPTED, SUCCEEDED, WARNINGS, Job

SEVERITIES = ("info", "warning", "error")


class NotificationConfig(Row):
    """A channel of a user. `config` has `least` (the severity from which on it is told) and `trusted`; `address` and `secret` are sealed."""

    __tablename__ = "notification_configs"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    type: Mapped[str]
    address: Mapped[str]
    secret: Mapped[str]
    config: Mapped[Json] = mapped_column(default=dict)
    enabled: Mapped[bool] = mapped_column(default=True)
    problem: Mapped[str | None]


class Notification(Row):
    """Something to tell a user, in the inbox and through a channel. `sent_at` is None until it was told."""

    __tablename__ = "notifications"
    __table_args__ = (Index("ix_notifications_user_created", "user_id", "created_at", "id"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    channel_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("notification_configs.id", ondelete="CASCADE"), index=True
    )
    type: Mapped[str]
    severity: Mapped[str]
    subject: Mapped[str]
    message: Mapped[str]
    sent_at: Mapped[datetime | None]
    read_at: Mapped[datetime | None]


def severity_of(job: Job, status: str, before: str | None) -> str | None:
    """Return how bad the end of a job is; None where nobody is told. What works again after a failure is told even where success is not."""
    if status == FAILED or (status == INTERRUPTED and job.attempt > 1):
        return "error"
    if status == WARNINGS:
        return "warning"
    if status == SUCCEEDED:
        return "warning" if before in {FAILED, INTERRUPTED} else "info"
    return None


def status_before(session: Session, job: Job) -> str | None:
    """Return how the job before this one on the same thing ended; attempts at this very one do not count."""
    if job.lock_key is None:
        return None
    attempts, earlier = [job.id], job.retry_of
    while earlier is not None:
        attempts.append(earlier)
        before = session.get(Job, earlier)
        earlier = None if before is None else before.retry_of
    return session.scalar(
        select(Job.status)
        .where(Job.lock_key == job.lock_key, Job.type == job.type, Job.id.not_in(attempts), Job.status.in_(ENDED))
        .order_by(Job.created_at.desc())
        .limit(1)
    )


def announce(session: Session, *, kind: str, severity: str, subject: str, message: str) -> list[UUID]:
    """Put news into the inboxes of all who want to know; return the channels that have something to send. The caller commits."""
    channels = session.scalars(
        select(NotificationConfig)
        .join(User, User.id == NotificationConfig.user_id)
        .where(NotificationConfig.enabled, User.enabled)
    ).all()
    chosen = [
        row for row in channels if SEVERITIES.index(severity) >= SEVERITIES.index(row.config.get("least", "warning"))
    ]
    for row in chosen:
        session.add(
            Notification(
                user_id=row.user_id, channel_id=row.id, type=kind, severity=severity, subject=subject, message=message
            )
        )
    return [row.id for row in chosen]


def unsent(session: Session, channel: UUID) -> list[Notification]:
    """Return what a channel has to tell, oldest first."""
    return list(
        session.scalars(
            select(Notification)
            .where(Notification.channel_id == channel, Notification.sent_at.is_(None))
            .order_by(Notification.created_at)
        )
    )


def mark_sent(session: Session, told: list[UUID], channel: UUID, now: datetime) -> None:
    """Note that these were told. The caller commits."""
    session.execute(update(Notification).where(Notification.id.in_(told)).values(sent_at=now))
    session.execute(update(NotificationConfig).where(NotificationConfig.id == channel).values(problem=None))
