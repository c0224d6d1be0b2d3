"""Workers, as they say of themselves that they are there."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from lab_backup.catalog.base import Json
from lab_backup.catalog.places import WorkerRow

HEARD = timedelta(seconds=15)  # between two words of a worker
ALIVE = timedelta(seconds=60)
FORGOTTEN = timedelta(days=1)


def hear(
    session: Session,
    *,
    name: str,
    host: str,
    version: str,
    queues: Sequence[str],
    slots: int,
    started_at: datetime,
    figures: Json,
    now: datetime,
) -> None:
    """Note that a worker is there. The caller commits."""
    values = {
        "name": name,
        "host": host,
        "version": version,
        "queues": list(queues),
        "slots": slots,
        "started_at": started_at,
        "figures": figures,
        "seen_at": now,
    }
    session.execute(insert(WorkerRow).values(**values).on_conflict_do_update(index_elements=["name"], set_=values))


def say_goodbye(session: Session, name: str) -> None:
    """Forget a worker that ends in order. The caller commits."""
    session.execute(delete(WorkerRow).where(WorkerRow.name == name))


def forget_silent(session: Session, now: datetime) -> None:
    """Forget workers that were not heard for a day. The caller commits."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - FORGOTTEN))


def workers() -> Select[Any]:
    """Return all workers, by name."""
    return select(WorkerRow).order_by(WorkerRow.name)
