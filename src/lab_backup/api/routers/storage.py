"""Storages: repositories and where they are."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

from fastapi import APIRouter, status

from lab_backup.api.access import Actor, Audited, CanAdminister, CanOperate, CanRead
from lab_backup.api.context import Context, Db, InContext
from lab_backup.api.opening import opened
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.places import (
    KeyCreate,
    KeyShown,
    ReplicateCreate,
    SampleShown,
    Sheet,
    StorageCheck,
    StorageCreate,
    StorageCredentials,
    StorageShown,
    StorageTest,
    StorageUpdate,
    Usage,
)
from lab_backup.api.schemas.work import JobShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.credentials import credentials_of, keep_credentials, keep_passphrase
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import Storage
from lab_backup.catalog.queries import everything, get, is_asked, is_used, put, refuse_taken, released, samples_of
from lab_backup.catalog.queue import new_job
from lab_backup.catalog.work import Job
from lab_backup.errors import BusyError, LabBackupError, UsageError
from lab_backup.operations import repositories
from lab_backup.operations.repositories import (
    RepositoryInfo,
    init_repository,
    open_repository,
    recovery_sheet,
    repository_info,
)
from lab_backup.operations.storage_test import check_storage
from lab_backup.policy.forecast import full_on, growth
from lab_backup.repository.repository import Repository
from lab_backup.security.vault_access import resolved
from lab_backup.storage.address import open_storage
from lab_backup.units import MiB

T = TypeVar("T")
KEY_ID, SECRET_KEY, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
SMB_PASSWORD = "LAB_BACKUP_SMB_PASSWORD"  # noqa: S105  the name of a variable
router = APIRouter(tags=["storage"])


def storage_shown(row: Storage) -> StorageShown:
    """Return a storage without its secrets."""
    names = StorageShown.model_fields.keys() - {"encrypted", "has_credentials"}
    return StorageShown(
        **{name: getattr(row, name) for name in names},
        encrypted=row.passphrase is not None,
        has_credentials=row.credentials is not None,
    )


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
    return Listed(items=[storage_shown(row) for row in found.items], next=found.next)


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
    given = _credentials(body.credentials, body.url)
    info = await in_thread(_adopt if body.existing else _init, body, secret, given, context)
    await refuse_taken(db, Storage.repository_id, info.id, "the repository")
    row = Storage(
        id=uuid4(),
        name=body.name,
        type=_kind(body.url),
        url=body.url,
        repository_id=info.id,
        config={"chunk_size": info.chunk_size, "compression": info.compression},
        threshold=body.threshold,
        at_once=body.at_once,
    )
    keep_passphrase(row, secret, context.master_key)
    keep_credentials(row, given, context.master_key)
    db.add(row)
    await db.flush()
    await db.refresh(row)
    db.add(_usage_of(row))
    if body.existing:
        db.add(new_job("rebuild-catalog", {}, title=f"list the backups in {row.name}", storage=row.id))
    await audit(actor, "created", "storage", row.id, name=row.name, url=row.url, adopted=body.existing)
    return storage_shown(row)


def _credentials(given: StorageCredentials | None, url: str) -> dict[str, str] | None:
    """Return credentials by the names that the storages know. Raises UsageError for those that do not fit the address."""
    if given is None:
        return None
    pairs = (("access_key", KEY_ID), ("secret_key", SECRET_KEY), ("session_token", TOKEN), ("password", SMB_PASSWORD))
    values = {name: getattr(given, field) for field, name in pairs if getattr(given, field) is not None}
    found = {name: value if isinstance(value, str) else value.get_secret_value() for name, value in values.items()}
    needed = {"s3": {KEY_ID, SECRET_KEY}, "smb": {SMB_PASSWORD}}.get(_kind(url), set())
    allowed = needed | ({TOKEN} if _kind(url) == "s3" else set())
    if not needed <= found.keys() <= allowed:
        wanted = {"s3": "access_key and secret_key", "smb": "password"}.get(_kind(url), "none")
        raise UsageError(
            f"the credentials of such a storage are: {wanted}", hint="leave out the others, or give what is missing"
        )
    return found


def _in_clear(given: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if given is None else {name: resolved(value) for name, value in given.items()}


def _init(body: StorageCreate, secret: str | None, given: Mapping[str, str] | None, _: Context) -> RepositoryInfo:
    return init_repository(
        body.url,
        passphrase=None if secret is None else resolved(secret),
        chunk_size=body.chunk_size,
        compression=body.compression,
        encryption=secret is not None,
        credentials=_in_clear(given),
    )


def _adopt(
    body: StorageCreate, secret: str | None, given: Mapping[str, str] | None, context: Context
) -> RepositoryInfo:
    with open_repository(
        body.url,
        passphrase=None if secret is None else resolved(secret),
        cache_directory=context.cache_directory,
        credentials=_in_clear(given),
    ) as repository:
        return repository_info(repository)


@router.post("/storage/test")
async def try_storage(body: StorageCreate, _: CanAdminister) -> StorageTest:
    """Try a storage out before it is added: write, read back, list, delete, speed, clock, space. Nothing stays behind."""
    return await in_thread(_try, body.url, _credentials(body.credentials, body.url))


def _try(url: str, given: Mapping[str, str] | None) -> StorageTest:
    try:
        storage = open_storage(url, credentials=_in_clear(given))
    except LabBackupError as error:
        return StorageTest(
            ok=False, checks=[StorageCheck(name="open", outcome="failed", detail=error.message, hint=error.hint)]
        )
    try:
        report = check_storage(storage, large=4 * MiB)
    finally:
        storage.close()
    return StorageTest(ok=not report.failed, checks=[StorageCheck.model_validate(check) for check in report.checks])


@router.get("/storage/{storage_id}")
async def show_storage(storage_id: UUID, _: CanRead, db: Db) -> StorageShown:
    """Show a storage."""
    return storage_shown(await get(db, Storage, storage_id, "storage"))


@router.put("/storage/{storage_id}")
async def update_storage(
    storage_id: UUID, body: StorageUpdate, actor: CanAdminister, context: InContext, db: Db, audit: Audited
) -> StorageShown:
    """Change a storage. New credentials are kept only if they open it."""
    row = await get(db, Storage, storage_id, "storage")
    if body.name is not None:
        await refuse_taken(db, Storage.name, body.name, "the storage", but=storage_id)
    if body.passphrase is not None:
        keep_passphrase(row, body.passphrase.get_secret_value(), context.master_key)
    if body.credentials is not None:
        keep_credentials(row, _credentials(body.credentials, row.url), context.master_key)
    if body.passphrase is not None or body.credentials is not None:
        await in_thread(lambda: opened(row, context).close())
    for name in ("name", "enabled", "threshold", "at_once"):
        value = getattr(body, name)
        if value is not None:
            setattr(row, name, value)
    await audit(actor, "changed", "storage", storage_id, fields=", ".join(sorted(body.model_fields_set)))
    return storage_shown(row)


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
    samples = [(day, used) for day, used in (await db.execute(samples_of(storage_id))).all()]
    return Usage(
        used=row.used,
        capacity=row.capacity,
        threshold=row.threshold,
        seen_at=row.seen_at,
        history=[SampleShown(day=day, used=used) for day, used in samples],
        growth=growth(samples),
        full_on=full_on(samples, row.capacity),
    )


def _usage_of(row: Storage) -> Job:
    return new_job("usage", {}, title=f"space of {row.name}", lock_key=f"usage/{row.id}", storage=row.id, priority=5)


async def _queue(db: AsyncSession, storage: UUID, kind: str, title: str, actor: Actor) -> JobShown:
    row = await get(db, Storage, storage, "storage")
    job = new_job(
        kind, {}, title=f"{title} {row.name}", lock_key=f"{kind}/{storage}", storage=storage, requested_by=actor.user
    )
    return JobShown.model_validate(await put(db, job))


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
    return JobShown.model_validate(await put(db, job))


@router.post("/storage/{storage_id}/test")
async def try_kept_storage(storage_id: UUID, _: CanAdminister, context: InContext, db: Db) -> StorageTest:
    """Try a storage out as it is, beside what it holds."""
    row: Storage = await released(db, await get(db, Storage, storage_id, "storage"))
    return await in_thread(lambda: _try(row.url, credentials_of(row, context.master_key)))


@router.get("/storage/{storage_id}/keys")
async def list_keys(storage_id: UUID, _: CanAdminister, context: InContext, db: Db) -> list[KeyShown]:
    """List the passphrases, key files and Vault keys that open the repository."""
    row: Storage = await released(db, await get(db, Storage, storage_id, "storage"))
    return [KeyShown.model_validate(key) for key in await in_thread(_with, row, context, repositories.list_keys)]


@router.post("/storage/{storage_id}/keys", status_code=status.HTTP_201_CREATED)
async def add_key(
    storage_id: UUID, body: KeyCreate, actor: CanAdminister, context: InContext, db: Db, audit: Audited
) -> KeyShown:
    """Let another passphrase open the repository. No data is rewritten."""
    row: Storage = await released(db, await get(db, Storage, storage_id, "storage"))
    given = body.passphrase.get_secret_value()
    made = await in_thread(
        _with, row, context, lambda repository: repositories.add_key(repository, resolved(given), label=body.label)
    )
    await audit(actor, "added key", "storage", storage_id, key=made.id, label=made.label)
    return KeyShown.model_validate(made)


@router.delete("/storage/{storage_id}/keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
async def remove_key(
    storage_id: UUID, key_id: str, actor: CanAdminister, context: InContext, db: Db, audit: Audited
) -> None:
    """Take a passphrase away. The last one stays."""
    row: Storage = await released(db, await get(db, Storage, storage_id, "storage"))
    gone = await in_thread(_with, row, context, lambda repository: repositories.remove_key(repository, key_id))
    await audit(actor, "removed key", "storage", storage_id, key=gone.id, label=gone.label)


def _with(row: Storage, context: Context, use: Callable[[Repository], T]) -> T:
    with opened(row, context) as repository:
        return use(repository)


@router.post("/storage/{storage_id}/recovery-sheet")
async def sheet(storage_id: UUID, actor: CanAdminister, context: InContext, db: Db, audit: Audited) -> Sheet:
    """Return a page to print and lock away: with it and the storage alone everything can be restored. This is noted."""
    row: Storage = await get(db, Storage, storage_id, "storage")
    if row.passphrase is None:
        raise UsageError("the repository is not encrypted, so there is no key to keep")
    row = await released(db, row)
    text = await in_thread(_with, row, context, recovery_sheet)
    await audit(actor, "recovery sheet", "storage", storage_id)
    return Sheet(text=text)
