"""Health, metrics and reports."""

import csv
import io
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response, status
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from redis.exceptions import RedisError

from lab_backup import __version__
from lab_backup.api.access import CanRead
from lab_backup.api.context import Db, InContext
from lab_backup.api.routers.storage import storage_shown
from lab_backup.api.schemas.places import StorageShown
from lab_backup.api.schemas.work import ComplianceShown, HistoryShown, ProtectionShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import DatabaseError
from lab_backup.catalog.places import Storage
from lab_backup.catalog.queries import compliance, count_users, everything, figures, job_history, protection
from lab_backup.metrics.pdf import report
from lab_backup.metrics.service import CONTENT_TYPE, exposition

router = APIRouter(tags=["overview"])
root = APIRouter(tags=["overview"])
"""What lies outside of the API's own path, where other programs look for it."""

Format = Literal["json", "csv", "pdf"]
TABLE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            "application/pdf": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}


_NOT_PRINTED = {"id", "source_id", "repository_id", "url", "created_at", "threshold", "problem"}
"""Columns that a page has no room for."""


class Health(BaseModel):
    """Whether the service works."""

    status: Literal["ok", "degraded"]
    version: str
    database: bool = True
    redis: bool = True


@router.get("/health/live")
async def live() -> Health:
    """Tell that the process answers."""
    return Health(status="ok", version=__version__)


@router.get("/health/ready", responses={503: {"model": Health}})
async def ready(context: InContext, response: Response) -> Health:
    """Tell whether database and Redis answer."""
    database = redis = True
    try:
        async with context.sessions() as session:
            await count_users(session)
    except DatabaseError:
        database = False
    try:
        await context.redis.ping()
    except (RedisError, OSError):
        redis = False
    if not (database and redis):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Health(
        status="ok" if database and redis else "degraded", version=__version__, database=database, redis=redis
    )


@router.get("/metrics")
async def metrics(_: CanRead, db: Db) -> dict[str, Any]:
    """Return counts of jobs, the queue's depth, the newest backup of each source, storages and sizes."""
    return await figures(db)


@root.get("/metrics", response_class=PlainTextResponse)
async def prometheus(_: CanRead, db: Db) -> Response:
    """Return the same figures as Prometheus reads them; a scraper signs in with an API token of a viewer."""
    return Response(exposition(await figures(db)), media_type=CONTENT_TYPE)


def _as_csv(rows: list[Any]) -> Response:
    text = io.StringIO()
    plain = [row.model_dump(mode="json") for row in rows]
    writer = csv.DictWriter(text, fieldnames=list(type(rows[0]).model_fields) if rows else ["empty"])
    writer.writeheader()
    writer.writerows([{key: _harmless(value) for key, value in row.items()} for row in plain])
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8")


def _harmless(value: Any) -> Any:
    """Keep a name from being read as a formula by a spreadsheet."""
    return "'" + value if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


async def _report(title: str, rows: list[Any], form: Format, chart: tuple[str, str] | None = None) -> Any:
    """Return the rows as they were asked for."""
    if form == "csv":
        return _as_csv(rows)
    if form == "pdf":
        plain = [row.model_dump(exclude=_NOT_PRINTED) for row in rows]
        page = await in_thread(partial(report, title, plain, when=datetime.now(UTC), chart=chart))
        return Response(page, media_type="application/pdf")
    return rows


@router.get("/reports/backup-status", response_model=list[ProtectionShown], responses=TABLE)
async def backup_status(_: CanRead, db: Db, format: Format = "json") -> Any:  # noqa: A002  the word of the API
    """List every source that is known, with its newest good backup and whether a schedule serves it."""
    return await _report("Backup status", [ProtectionShown(**row) for row in await protection(db)], format)


@router.get("/reports/compliance", response_model=list[ComplianceShown], responses=TABLE)
async def compliance_report(
    _: CanRead,
    db: Db,
    days: Annotated[int, Query(ge=1, le=366)] = 30,
    hours: Annotated[int, Query(ge=1, le=8784, description="How old the newest good backup may be")] = 26,
    format: Format = "json",  # noqa: A002  the word of the API
) -> Any:
    """Tell of every source whether it is protected as it should be: its newest backups, copies, encryption, gaps, and what people did."""
    now = datetime.now(UTC)
    rows = [
        ComplianceShown(**row, kept=row["scheduled"] and row["age_hours"] is not None and row["age_hours"] <= hours)
        for row in await compliance(db, now - timedelta(days=days), now)
    ]
    return await _report(f"Compliance, the last {days} days", rows, format, ("name", "age_hours"))


@router.get("/reports/storage-usage", response_model=list[StorageShown], responses=TABLE)
async def storage_usage(_: CanRead, db: Db, format: Format = "json") -> Any:  # noqa: A002  the word of the API
    """List how full the storages are."""
    rows = [storage_shown(row) for row in (await db.scalars(everything(Storage))).all()]
    return await _report("Storage usage", rows, format, ("name", "used"))


@router.get("/reports/job-history", response_model=list[HistoryShown], responses=TABLE)
async def history(_: CanRead, db: Db, days: Annotated[int, Query(ge=1, le=3660)] = 30, format: Format = "json") -> Any:  # noqa: A002  the word of the API
    """Count jobs by day, type and how they ended."""
    rows = [HistoryShown(**row) for row in await job_history(db, datetime.now(UTC) - timedelta(days=days))]
    return await _report(f"Jobs of the last {days} days", rows, format)
