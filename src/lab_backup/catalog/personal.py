"""What is known of a person: kept apart from the audit log, whose entries name it by pseudonyms, so that it can be erased and the log's chain holds."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from lab_backup.catalog.base import Json
from lab_backup.catalog.news import Notification, NotificationConfig
from lab_backup.catalog.people import ApiToken, AuditEntry, LoginSession, PersonalDatum
from lab_backup.catalog.work import Job

PERSONAL = frozenset({"username", "email", "address"})
"""Details of the audit log that say who somebody is or where they were."""
ERASED = "erased"
MOST = 10_000  # newest rows of each kind in an export
_PSEUDONYM = "personal"


def put_apart(session: AsyncSession, details: Json, whose: UUID | None) -> Json:
    """Return the details with pseudonyms in place of what is personal, which is kept apart for as long as there is that user. The caller commits."""
    found: Json = {}
    for name, value in details.items():
        if name in PERSONAL and value is not None:
            datum = PersonalDatum(id=uuid4(), user_id=whose, value=str(value))
            session.add(datum)
            found[name] = {_PSEUDONYM: str(datum.id)}
        else:
            found[name] = value
    return found


async def revealed(session: AsyncSession, entries: Sequence[AuditEntry]) -> list[Json]:
    """Return the details of entries with what the pseudonyms stand for, or that it was erased."""
    wanted = {UUID(value[_PSEUDONYM]) for entry in entries for value in entry.details.values() if _is_pseudonym(value)}
    rows = await session.scalars(select(PersonalDatum).where(PersonalDatum.id.in_(wanted))) if wanted else ()
    known = {str(row.id): row.value for row in rows}
    return [
        {
            name: known.get(value[_PSEUDONYM], ERASED) if _is_pseudonym(value) else value
            for name, value in entry.details.items()
        }
        for entry in entries
    ]


def _is_pseudonym(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == {_PSEUDONYM}  # callers put in scalars alone


async def rows_about(session: AsyncSession, user: UUID) -> dict[str, Sequence[Any]]:
    """Return the newest rows that belong to a user or speak of them, by kind."""

    async def newest(table: Any, *which: Any, by: Any) -> Sequence[Any]:
        return (await session.scalars(select(table).where(*which).order_by(by.desc()).limit(MOST))).all()

    of_user = or_(
        AuditEntry.user_id == user, (AuditEntry.resource_type == "user") & (AuditEntry.resource_id == str(user))
    )
    return {
        "sessions": await newest(LoginSession, LoginSession.user_id == user, by=LoginSession.created_at),
        "tokens": await newest(ApiToken, ApiToken.user_id == user, by=ApiToken.created_at),
        "channels": await newest(
            NotificationConfig, NotificationConfig.user_id == user, by=NotificationConfig.created_at
        ),
        "notifications": await newest(Notification, Notification.user_id == user, by=Notification.created_at),
        "jobs": await newest(Job, Job.requested_by == user, by=Job.created_at),
        "audit": await newest(AuditEntry, of_user, by=AuditEntry.id),
    }
