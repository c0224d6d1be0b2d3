"""Storages: repositories and where they are."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from fastapi import APIRouter, status

from lab_backup.api.access import Actor, Audited, CanAdminister, CanOperate, CanRead
from lab_backup.api.context import Context, Db, InContext
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.places import ReplicateCreate, Sheet, StorageCreate, StorageShown, StorageUpdate, Usage
from lab_backup.api.schemas.work import JobShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.credentials import keep_passphrase, passphrase_of
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import Storage
from lab_backup.catalog.queries import everything, get, is_asked, is_used, refuse_taken
from lab_backup.catalog.queue import new_job
from lab_backup.catalog.work import Job
from lab_backup.errors import BusyError, UsageError
from lab_backup.operations.repositories import (
    RepositoryInfo,
    init_repository,
    open_repository,
    recovery_sheet,
    repository_info,
)

router = APIRouter(tags=["storage"])


def _shown(row: Storage) -> StorageShown:
    values = {name: getattr(row, name) for name in StorageShown.model_fields if name != "encrypted"}
    return StorageShown(**values, encrypted=row.passphrase is not None)


def _kind(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and scheme.lower() != "file" else "local"


@router.get("/storage")
async def list_storages(_: CanRead, db: Db, paging: InPages) -> Listed[StorageShown]:
    """List storages."""
    found = await page(
        db,
        everything(Storage),
        Storage.created_at,
        Storage.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[_shown(row) for row in found.items], next=found.next)


@router.post("/storage", status_code=status.HTTP_201_CREATED)
async def create_storage(
    body: StorageCreate, actor: CanAdminister, context: InContext, db: Db, audit: Audited
) -> StorageShown:
    """Make a repository, or take one that is there; the backups of that one are listed in the background."""
    await refuse_taken(db, Storage.name, body.name, "the storage")
    await refuse_taken(db, Storage.url, body.url, "a storage at")
    if _kind(body.url) == "local" and not body.url.startswith(("/", "file:///")):
        raise UsageError("a folder must be named from the root", hint="for example /srv/backups")
    await db.rollback()  # Key derivation and a storage far away take their time; no connection waits for them.
    secret = None if body.passphrase is None else body.passphrase.get_secret_value()
    info = await in_thread(_adopt if body.existing else _init, body, secret, context)
    await refuse_taken(db, Storage.repository_id, info.id, "the repository")
    row = Storage(
        id=uuid4(),
        name=body.name,
        type=_kind(body.url),
        url=body.url,
        repository_id=info.id,
        config={"chunk_size": info.chunk_size, "compression": info.compression},
        threshold=body.threshold,
    )
    keep_passphrase(row, secret, context.master_key)
    db.add(row)
    await db.flush()
    await db.refresh(row)
    db.add(_usage_of(row))
    if body.existing:
        db.add(new_job("rebuild-catalog", {}, title=f"list the backups in {row.name}", storage=row.id))
    await audit(actor, "created", "storage", row.id, name=row.name, url=row.url, adopted=body.existing)
    return _shown(row)


def _init(body: StorageCreate, secret: str | None, _: Context) -> RepositoryInfo:
    return init_repository(
        body.url,
        passphrase=secret,
        chunk_size=body.chunk_size,
        compression=body.compression,
        encryption=secret is not None,
    )


def _adopt(body: StorageCreate, secret: str | None, context: Context) -> RepositoryInfo:
    with open_repository(body.url, passphrase=secret, cache_directory=context.cache_directory) as repository:
        return repository_info(repository)


@router.get("/storage/{storage_id}")
async def show_storage(storage_id: UUID, _: CanRead, db: Db) -> StorageShown:
    """Show a storage."""
    return _shown(await get(db, Storage, storage_id, "storage"))


@router.put("/storage/{storage_id}")
async def update_storage(
    storage_id: UUID, body: StorageUpdate, actor: CanAdminister, db: Db, audit: Audited
) -> StorageShown:
    """Change a storage."""
    row = await get(db, Storage, storage_id, "storage")
    if body.name is not None:
        await refuse_taken(db, Storage.name, body.name, "the storage", but=storage_id)
    for name in ("name", "enabled", "threshold"):
        value = getattr(body, name)
        if value is not None:
            setattr(row, name, value)
    await audit(actor, "changed", "storage", storage_id, fields=", ".join(sorted(body.model_fields_set)))
    return _shown(row)


@router.delete("/storage/{storage_id}", status_code=status.HTTP_204_NO_CONTENT)
async def forget_storage(storage_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> None:
    """Forget a storage. The repository and its backups stay where they are, and can be taken again."""
    row = await get(db, Storage, storage_id, "storage")
    if await is_used(db, storage_id):
        raise BusyError("schedules or jobs use this storage", hint="delete the schedules, and wait for the jobs")
    await db.delete(row)
    await audit(actor, "forgotten", "storage", storage_id, name=row.name, url=row.url)


@router.get("/storage/{storage_id}/usage")
async def usage(storage_id: UUID, _: CanRead, db: Db) -> Usage:
    """Tell how full a storage was when it was last asked; it is asked again in the background."""
    row = await get(db, Storage, storage_id, "storage")
    old = row.seen_at is None or (datetime.now(UTC) - row.seen_at).total_seconds() > 60
    if old and not await is_asked(db, f"usage/{row.id}"):
        db.add(_usage_of(row))
    return Usage.model_validate(row)


def _usage_of(row: Storage) -> Job:
    return new_job("usage", {}, title=f"space of {row.name}", lock_key=f"usage/{row.id}", storage=row.id, priority=5)


async def _queue(db: AsyncSession, storage: UUID, kind: str, title: str, actor: Actor) -> JobShown:
    row = await get(db, Storage, storage, "storage")
    job = new_job(
        kind, {}, title=f"{title} {row.name}", lock_key=f"{kind}/{storage}", storage=storage, requested_by=actor.user
    )
    db.add(job)
    await db.flush()
    await db.refresh(job)
    return JobShown.model_validate(job)


@router.post("/storage/{storage_id}/verify", status_code=status.HTTP_202_ACCEPTED)
async def verify_storage(storage_id: UUID, actor: CanOperate, db: Db, audit: Audited) -> JobShown:
    """Read every byte of every backup back and check it."""
    await audit(actor, "verify", "storage", storage_id)
    return await _queue(db, storage_id, "verify", "verify", actor)


@router.post("/storage/{storage_id}/gc", status_code=status.HTTP_202_ACCEPTED)
async def collect_storage(storage_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> JobShown:
    """Give back the space that no backup needs."""
    await audit(actor, "collect", "storage", storage_id)
    return await _queue(db, storage_id, "gc", "collect in", actor)


@router.post("/storage/{storage_id}/rebuild-catalog", status_code=status.HTTP_202_ACCEPTED)
async def rebuild_catalog(storage_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> JobShown:
    """Make the list of backups from the repository alone."""
    await audit(actor, "rebuild catalog", "storage", storage_id)
    return await _queue(db, storage_id, "rebuild-catalog", "list the backups in", actor)


@router.post("/storage/{storage_id}/replicate", status_code=status.HTTP_202_ACCEPTED)
async def replicate_storage(
    storage_id: UUID, body: ReplicateCreate, actor: CanAdminister, db: Db, audit: Audited
) -> JobShown:
    """Copy all backups that another storage does not have there."""
    row = await get(db, Storage, storage_id, "storage")
    target = await get(db, Storage, body.to, "storage")
    if row.id == target.id:
        raise UsageError("a storage is not copied to itself", hint="choose another one")
    await audit(actor, "replicate", "storage", storage_id, to=target.name)
    job = new_job(
        "replicate",
        {"to": str(target.id)},
        title=f"copy {row.name} to {target.name}",
        lock_key=f"replicate/{row.id}",
        storage=row.id,
        requested_by=actor.user,
    )
    db.add(job)
    await db.flush()
    await db.refresh(job)
    return JobShown.model_validate(job)


@router.post("/storage/{storage_id}/recovery-sheet")
async def sheet(storage_id: UUID, actor: CanAdminister, context: InContext, db: Db, audit: Audited) -> Sheet:
    """Return a page to print and lock away: with it and the storage alone everything can be restored. This is noted."""
    row: Storage = await get(db, Storage, storage_id, "storage")
    if row.passphrase is None:
        raise UsageError("the repository is not encrypted, so there is no key to keep")
    await audit(actor, "recovery sheet", "storage", storage_id)
    secret = passphrase_of(row, context.master_key)

    def print_sheet() -> str:
        with open_repository(row.url, passphrase=secret, cache_directory=context.cache_directory) as repository:
            return recovery_sheet(repository)

    return Sheet(text=await in_thread(print_sheet))
