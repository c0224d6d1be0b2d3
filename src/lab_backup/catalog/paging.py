"""Lists page by page: each page begins where the one before ended, however many rows come in between (keyset pagination)."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from lab_backup.errors import UsageError

LIMIT = 50
MOST = 500

Order = Literal["newest", "oldest"]


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and the cursor of the page that follows; None at the end."""

    items: list[Any]
    next: str | None


def write_cursor(value: datetime | str | int, identity: UUID | int) -> str:
    """Return the cursor that stands for a row: what it is sorted by, and its id."""
    return base64.urlsafe_b64encode(msgspec.json.encode([value, str(identity)])).decode("ascii").rstrip("=")


def read_cursor(cursor: str, kind: type[Any] = datetime) -> tuple[Any, str]:
    """Return what the row that `cursor` stands for is sorted by, which is of that kind, and its id. Raises UsageError."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        moment, identity = msgspec.json.decode(raw, type=tuple[kind, str])  # type: ignore[valid-type]  # known when it runs
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise UsageError("this cursor was not given out by a list", hint="begin anew without a cursor") from error
    return moment, identity


async def page(
    session: AsyncSession,
    statement: Select[Any],
    moment: Any,
    identity: Any,
    *,
    cursor: str | None,
    limit: int,
    order: Order = "newest",
) -> Page:
    """Return a page of `statement`, ordered by the columns `moment` (or another one that is never null) and `identity`. Raises UsageError for a cursor that is none."""
    if cursor is not None:
        at, number = read_cursor(cursor, moment.type.python_type)
        try:
            last: UUID | int = int(number) if identity.type.python_type is int else UUID(number)
        except ValueError as error:
            raise UsageError("this cursor belongs to another list", hint="begin anew without a cursor") from error
        here = tuple_(moment, identity)
        statement = statement.where(here < (at, last) if order == "newest" else here > (at, last))
    chosen = (moment.desc(), identity.desc()) if order == "newest" else (moment, identity)
    rows = list(await session.scalars(statement.order_by(*chosen).limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    follows = write_cursor(getattr(rows[-1], moment.key), getattr(rows[-1], identity.key)) if more else None
    return Page(rows, follows)
