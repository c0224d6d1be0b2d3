"""Files in backups of containers, volumes and pods: looking at them, and downloading them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from lab_backup.api.access import Audited, CanOperate
from lab_backup.api.context import Context, Db, InContext
from lab_backup.api.opening import opened
from lab_backup.api.schemas.work import FileShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.places import Storage
from lab_backup.catalog.queries import get
from lab_backup.catalog.work import BackupRow
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.file_archive import Packed, pack_backup, pack_files
from lab_backup.operations.files import choose_tree, list_files
from lab_backup.repository.repository import Repository

router = APIRouter(tags=["files"])

InTree = Annotated[
    str | None, Query(max_length=255, description="A volume of the container; leave it out where there is only one")
]
InRootfs = Annotated[bool, Query(description="The container's own files")]
Place = Annotated[str, Query(max_length=4096)]
Names = Annotated[list[Annotated[str, Query(max_length=1000)]], Query(min_length=1, max_length=60)]
"""What to download. All names together must fit into an address, of which HTTP servers read 64 KiB."""
BYTES = {"schema": {"type": "string", "format": "binary"}}
DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file, or the archive",
        "content": {"application/octet-stream": BYTES, "application/x-tar": BYTES},
    }
}
ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The archive", "content": {"application/x-tar": BYTES}}
}


async def _place(db: AsyncSession, backup_id: UUID) -> tuple[BackupRow, Storage]:
    row: BackupRow = await get(db, BackupRow, backup_id, "backup")
    storage: Storage = await get(db, Storage, row.storage_backend_id, "storage")
    return row, storage


@router.get("/backups/{backup_id}/files")
async def look(
    backup_id: UUID,
    _: CanOperate,
    context: InContext,
    db: Db,
    volume: InTree = None,
    rootfs: InRootfs = False,  # noqa: FBT002  a parameter of the address
    path: Place = "",
) -> list[FileShown]:
    """List what lies in a folder of a backup."""
    row, storage = await _place(db, backup_id)
    await db.commit()

    def ask() -> list[dict[str, Any]]:
        with opened(storage, context) as repository:
            tree = choose_tree(find_backup(repository, row.backup_id), volume=volume, rootfs=rootfs)
            return [asdict(item) for item in list_files(repository, tree, path)]

    return [FileShown(**item) for item in await in_thread(ask)]


@router.get("/backups/{backup_id}/files/download", response_class=StreamingResponse, responses=DOWNLOAD)
async def download(
    backup_id: UUID,
    actor: CanOperate,
    context: InContext,
    db: Db,
    audit: Audited,
    path: Names,
    volume: InTree = None,
    rootfs: InRootfs = False,  # noqa: FBT002  a parameter of the address
) -> StreamingResponse:
    """Download a file as it is, or folders and several files as a tar archive. This is noted."""
    row, storage = await _place(db, backup_id)
    await audit(actor, "download", "backup", backup_id, source=row.source_name, paths=", ".join(path)[:500])
    await db.commit()

    def pack(repository: Repository) -> Packed:
        tree = choose_tree(find_backup(repository, row.backup_id), volume=volume, rootfs=rootfs)
        return pack_files(repository, tree, path)

    return await _sent(storage, context, pack)


@router.get("/backups/{backup_id}/download", response_class=StreamingResponse, responses=ARCHIVE)
async def download_whole(
    backup_id: UUID, actor: CanOperate, context: InContext, db: Db, audit: Audited
) -> StreamingResponse:
    """Download a whole backup as a tar archive that needs no Lab Backup to be read. This is noted."""
    row, storage = await _place(db, backup_id)
    await audit(actor, "download", "backup", backup_id, source=row.source_name, paths="all")
    await db.commit()
    return await _sent(
        storage, context, lambda repository: pack_backup(repository, find_backup(repository, row.backup_id))
    )


async def _sent(storage: Storage, context: Context, pack: Callable[[Repository], Packed]) -> StreamingResponse:
    def stream() -> Iterator[Packed | bytes]:
        """Yield what is sent, then its pieces. It was begun when somebody leaves, and so closes the repository by itself."""
        with opened(storage, context) as repository:
            packed = pack(repository)
            yield packed
            yield from packed.pieces

    def begin() -> tuple[Packed, Iterator[Any]]:
        pieces = stream()
        packed = next(pieces)
        first = next(pieces, b"")  # what is wrong is told before the first byte goes out
        if not isinstance(packed, Packed):
            raise TypeError("the stream begins with what it is")
        return packed, chain([first], pieces)

    packed, pieces = await in_thread(begin)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(packed.name, safe='')}"}
    if packed.size is not None:
        headers["Content-Length"] = str(packed.size)
    return StreamingResponse(
        pieces, media_type="application/x-tar" if packed.archive else "application/octet-stream", headers=headers
    )
