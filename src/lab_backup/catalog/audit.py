"""Writing and checking the audit log."""

import logging
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from lab_backup.catalog.base import Json
from lab_backup.catalog.people import AuditEntry
from lab_backup.catalog.personal import put_apart
from lab_backup.security.chain import START, first_broken, link

LOCK = 7_236_118_003  # one entry after the other, so that each knows the hash of the one before


def _content(entry: AuditEntry) -> Json:
    return {
        "user_id": None if entry.user_id is None else str(entry.user_id),
        "action": entry.action,
        "resource_type": entry.resource_type,
        "resource_id": entry.resource_id,
        "details": entry.details,
    }


async def append(
    session: AsyncSession,
    key: bytes,
    *,
    user: UUID | None,
    action: str,
    resource_type: str,
    resource_id: str = "",
    details: Json | None = None,
    whose: UUID | None = None,
) -> None:
    """Add an entry. What is personal in it is of the user `whose`, and goes with them. The caller commits soon: others wait until then."""
    await session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": LOCK})
    previous = await session.scalar(select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1))
    entry = AuditEntry(
        user_id=user,
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        details=put_apart(session, details or {}, whose),
        timestamp=datetime.now(UTC),
    )
    entry.hash = link(key, previous or START, _content(entry), entry.timestamp)
    session.add(entry)
    await session.flush()
    logging.getLogger("lab_backup.audit").info(
        action,
        extra={
            "user": str(user) if user else None,
            "resource": f"{resource_type}/{resource_id}",
            "details": details or {},
        },
    )


def verify_audit(engine: Engine, key: bytes) -> tuple[int, int | None]:
    """Return how many entries there are, and the number of the first that was changed or follows one that is gone (None: all are sound)."""
    with Session(engine) as session:
        count = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=1000))
        broken = first_broken(key, ((entry.id, entry.hash, _content(entry), entry.timestamp) for entry in entries))
    return count, broken
