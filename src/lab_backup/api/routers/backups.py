"""Backups: making, listing, deleting, verifying and restoring them."""

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, status

from lab_backup.api.access import Audited, CanOperate, CanRead
from lab_backup.api.context import Db, InContext
from lab_backup.api.opening import opened
from lab_backup.api.problems import ForbiddenError
from lab_backup.api.routers.schedules import source_row
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.work import BackupCreate, BackupShown, ComparisonShown, JobShown, RestoreCreate
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import Storage
from lab_backup.catalog.queries import backups, get, only_host, put, released
from lab_backup.catalog.queue import backup_job, new_job
from lab_backup.catalog.sources import KINDS, source_of
from lab_backup.catalog.work import BackupRow, Job
from lab_backup.errors import BusyError, UsageError
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.compare import Comparison, compare
from lab_backup.repository.session import new_backup_id
from lab_backup.security.roles import Role

router = APIRouter(tags=["backups"])


async def _queued(db: AsyncSession, job: Job) -> JobShown:
    return JobShown.model_validate(await put(db, job))


@router.get("/backups")
async def list_backups(
    _: CanRead,
    db: Db,
    paging: InPages,
    source: str | None = None,
    source_type: str | None = None,
    storage: UUID | None = None,
    status: str | None = None,
    tag: str | None = None,
    sort: Literal["completed_at", "size", "compressed_size", "source_name"] = "completed_at",
) -> Listed[BackupShown]:
    """List backups."""
    statement = backups(source=source, source_type=source_type, storage=storage, status=status, tag=tag)
    found = await page(
        db,
        statement,
        getattr(BackupRow, sort),
        BackupRow.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[BackupShown.model_validate(vars(row)) for row in found.items], next=found.next)


@router.post("/backups", status_code=status.HTTP_202_ACCEPTED)
async def create_backup(body: BackupCreate, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Back up a source now."""
    source = await source_row(db, body.source_type, body.source_id)
    await get(db, Storage, body.storage_backend_id, "storage")
    await audit(actor, "back up", body.source_type, body.source_id, storage=body.storage_backend_id)
    return await _queued(
        db,
        backup_job(
            source_of(body.source_type, source),
            body.storage_backend_id,
            backup_id=new_backup_id(),
            requested_by=actor.user,
            full=body.full,
        ),
    )


@router.get("/backups/{backup_id}")
async def show_backup(backup_id: UUID, _: CanRead, db: Db) -> BackupShown:
    """Show a backup."""
    return BackupShown.model_validate(await get(db, BackupRow, backup_id, "backup"))


@router.delete("/backups/{backup_id}", status_code=status.HTTP_202_ACCEPTED)
async def delete_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Mark a backup as deleted. Until the grace period ends that can be undone; then a collection frees its space."""
    row: BackupRow = await get(db, BackupRow, backup_id, "backup")
    if row.protected:
        raise BusyError("the backup is protected", hint="take its protection away first")
    await audit(actor, "delete", "backup", backup_id, source=row.source_name)
    job = new_job(
        "delete",
        {"backup": str(row.id)},
        title=f"delete a backup of {row.source_name}",
        lock_key=f"backup/{row.id}",
        storage=row.storage_backend_id,
        requested_by=actor.user,
    )
    return await _queued(db, job)


@router.post("/backups/{backup_id}/verify", status_code=status.HTTP_202_ACCEPTED)
async def verify_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Read every byte of a backup back and check it."""
    row: BackupRow = await get(db, BackupRow, backup_id, "backup")
    await audit(actor, "verify", "backup", backup_id)
    job = new_job(
        "verify",
        {"backups": [row.backup_id]},
        title=f"verify {row.source_name}",
        lock_key=f"backup/{row.id}",
        storage=row.storage_backend_id,
        requested_by=actor.user,
    )
    return await _queued(db, job)


async def _mark(db: AsyncSession, backup_id: UUID, mark: str, by: UUID) -> JobShown:
    row: BackupRow = await get(db, BackupRow, backup_id, "backup")
    job = new_job(
        "mark",
        {"backup": str(row.id), "mark": mark},
        title=f"{mark} a backup of {row.source_name}",
        lock_key=f"backup/{row.id}",
        storage=row.storage_backend_id,
        requested_by=by,
        priority=5,
    )
    return await _queued(db, job)


@router.post("/backups/{backup_id}/protect", status_code=status.HTTP_202_ACCEPTED)
async def protect_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Keep a backup from every deletion until its protection is taken away."""
    await audit(actor, "protect", "backup", backup_id)
    return await _mark(db, backup_id, "protect", actor.user)


@router.delete("/backups/{backup_id}/protect", status_code=status.HTTP_202_ACCEPTED)
async def unprotect_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Take the protection of a backup away."""
    await audit(actor, "unprotect", "backup", backup_id)
    return await _mark(db, backup_id, "unprotect", actor.user)


@router.post("/backups/{backup_id}/archive", status_code=status.HTTP_202_ACCEPTED)
async def archive_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Keep a backup for good; its tags then hold `archive`."""
    await audit(actor, "archive", "backup", backup_id)
    return await _mark(db, backup_id, "archive", actor.user)


@router.delete("/backups/{backup_id}/archive", status_code=status.HTTP_202_ACCEPTED)
async def unarchive_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Let retention decide about a backup again."""
    await audit(actor, "unarchive", "backup", backup_id)
    return await _mark(db, backup_id, "unarchive", actor.user)


@router.get("/backups/{backup_id}/compare/{other_id}")
async def compare_backups(
    backup_id: UUID, other_id: UUID, _: CanOperate, context: InContext, db: Db
) -> ComparisonShown:
    """Tell what differs from this backup to another one in the same storage: files, bytes of disks, settings."""
    first: BackupRow = await get(db, BackupRow, backup_id, "backup")
    second: BackupRow = await get(db, BackupRow, other_id, "backup")
    if first.storage_backend_id != second.storage_backend_id:
        raise UsageError("the two backups are in different storages", hint="choose two in one storage")
    storage = await get(db, Storage, first.storage_backend_id, "storage")
    names = first.backup_id, second.backup_id
    await released(db, storage)

    def look() -> Comparison:
        with opened(storage, context) as repository:
            before, after = (find_backup(repository, name) for name in names)
            return compare(repository, before, after)

    return ComparisonShown.model_validate(await in_thread(look))


@router.post("/backups/{backup_id}/undelete", status_code=status.HTTP_202_ACCEPTED)
async def undelete_backup(backup_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Take a deletion back, which is possible until the grace period ends."""
    await audit(actor, "undelete", "backup", backup_id)
    return await _mark(db, backup_id, "undelete", actor.user)


@router.post("/backups/{backup_id}/restore", status_code=status.HTTP_202_ACCEPTED)
async def restore_backup(backup_id: UUID, body: RestoreCreate, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Restore a backup, after a check that all of it is there."""
    row: BackupRow = await get(db, BackupRow, backup_id, "backup")
    if row.source_type not in KINDS:
        raise UsageError(
            f"backups of a {row.source_type} are restored by the command line", hint="see: lab-backup restore --help"
        )
    if row.deleted_at is not None:
        raise BusyError("the backup is marked as deleted", hint="take the deletion back first: lab-backup undelete")
    if body.dry_run and row.source_type in {"vm", "volume"}:
        raise UsageError("a dry run of a restore is there for containers and pods only")
    if body.overwrite and row.source_type == "volume":
        raise UsageError("a volume is restored under a name that is free", hint="choose another `name`")
    target = body.name or row.source_name
    if body.overwrite and body.confirm != target:
        raise UsageError(
            f"overwriting must be confirmed by the name of what is replaced: {target!r}", hint="send it as `confirm`"
        )
    if (body.trusted or body.directory) and not actor.role.includes(Role.ADMIN):
        raise ForbiddenError(
            "`trusted` gives a restored guest what it wants of its host, and `directory` writes anywhere on it: only administrators may say so",
            hint="leave them out, or ask one",
        )
    table = KINDS[row.source_type].hosts
    host = await get(db, table, body.host, "host") if body.host else await only_host(db, table)
    details = {**body.model_dump(mode="json", exclude={"confirm"}), "backup": str(row.id), "host": str(host.id)}
    await audit(actor, "restore", "backup", backup_id, host=host.name, target=target, overwrite=body.overwrite)
    job = new_job(
        "restore", details, title=f"restore {row.source_name} as {target}" if target != row.source_name else f"restore {target}",
        lock_key=f"restore/{host.id}/{target}", storage=row.storage_backend_id, requested_by=actor.user, priority=10,
    )  # fmt: skip
    return await _queued(db, job)
