"""The service itself: workers, preferences, maintenance; and tags of sources."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
from fastapi import APIRouter

from lab_backup import __version__
from lab_backup.api.access import Audited, CanAdminister, CanOperate, CanRead
from lab_backup.api.context import Db
from lab_backup.api.routers.schedules import source_row
from lab_backup.api.schemas.places import TaggedShown, Tags, WorkerShown
from lab_backup.api.schemas.service import MaintenanceUpdate, PreferencesShown, PreferencesUpdate
from lab_backup.api.schemas.work import SourceType
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.places import KvmHost, PodmanHost, SourceTag
from lab_backup.catalog.preferences import Preferences, read_preferences, write_preferences
from lab_backup.catalog.queries import everything, replace_tags
from lab_backup.catalog.workers import ALIVE, workers
from lab_backup.errors import NotFoundError
from lab_backup.security.roles import Role

router = APIRouter(tags=["service"])


@router.get("/workers")
async def list_workers(_: CanRead, db: Db) -> list[WorkerShown]:
    """List the workers with what their hosts are at. One of another version than this service should be updated, or this should."""
    now = datetime.now(UTC)
    return [
        WorkerShown(
            **{name: getattr(row, name) for name in ("name", "host", "version", "queues", "slots", "figures")},
            started_at=row.started_at,
            seen_at=row.seen_at,
            alive=now - row.seen_at < ALIVE,
            same_version=row.version == __version__,
        )
        for row in await db.scalars(workers())
    ]


async def _kept(db: AsyncSession) -> Preferences:
    return await db.run_sync(read_preferences)


async def _keep(db: AsyncSession, preferences: Preferences) -> PreferencesShown:
    await db.run_sync(write_preferences, preferences)
    return PreferencesShown.model_validate(preferences)


@router.get("/settings")
async def show_settings(actor: CanRead, db: Db) -> PreferencesShown:
    """Show what is set for the whole service; the heartbeat's address, which may hold a secret, to administrators."""
    kept = await _kept(db)
    if not actor.role.includes(Role.ADMIN):
        kept = msgspec.structs.replace(kept, heartbeat_url=None)
    return PreferencesShown.model_validate(kept)


@router.put("/settings")
async def change_settings(body: PreferencesUpdate, actor: CanAdminister, db: Db, audit: Audited) -> PreferencesShown:
    """Change what is set for the whole service. It holds within seconds."""
    changed = body.model_dump(mode="json", exclude_unset=True)
    await audit(actor, "changed", "settings", fields=", ".join(sorted(changed)))
    return await _keep(db, msgspec.structs.replace(await _kept(db), **changed))


@router.put("/maintenance")
async def set_maintenance(body: MaintenanceUpdate, actor: CanAdminister, db: Db, audit: Audited) -> PreferencesShown:
    """Let no job begin, or let them begin again. What runs goes on; what is due meanwhile waits."""
    await audit(actor, "maintenance on" if body.on else "maintenance off", "settings", reason=body.reason)
    kept = await _kept(db)
    return await _keep(
        db, msgspec.structs.replace(kept, maintenance=body.on, maintenance_reason=body.reason if body.on else "")
    )


@router.put("/maintenance/{host_id}")
async def set_host_maintenance(
    host_id: UUID, body: MaintenanceUpdate, actor: CanAdminister, db: Db, audit: Audited
) -> PreferencesShown:
    """Let no job begin on one host, or let them begin again."""
    if await db.get(KvmHost, host_id) is None and await db.get(PodmanHost, host_id) is None:
        raise NotFoundError(f"there is no host {host_id}")
    await audit(actor, "maintenance on" if body.on else "maintenance off", "host", host_id, reason=body.reason)
    kept = await _kept(db)
    resting = {*kept.resting, str(host_id)} if body.on else {*kept.resting} - {str(host_id)}
    return await _keep(db, msgspec.structs.replace(kept, resting=sorted(resting)))


@router.get("/sources/tags")
async def list_tags(_: CanRead, db: Db) -> list[TaggedShown]:
    """List all tags of sources."""
    rows = await db.scalars(everything(SourceTag).order_by(SourceTag.tag, SourceTag.source_type, SourceTag.source_id))
    return [TaggedShown.model_validate(row) for row in rows]


@router.put("/sources/{source_type}/{source_id}/tags")
async def set_tags(
    source_type: SourceType, source_id: UUID, body: Tags, actor: CanOperate, db: Db, audit: Audited
) -> list[TaggedShown]:
    """Give a source its tags, by which schedules choose."""
    await source_row(db, source_type, source_id)
    await audit(actor, "tagged", source_type, source_id, tags=", ".join(sorted(body.tags)))
    rows = await replace_tags(db, source_type, source_id, sorted(set(body.tags)))
    return [TaggedShown.model_validate(row) for row in rows]
