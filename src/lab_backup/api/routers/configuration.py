"""What the service was set up with, as one document."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from lab_backup.api.access import Audited, CanAdminister
from lab_backup.api.context import Db
from lab_backup.api.schemas.service import ChangeShown
from lab_backup.catalog.configuration import apply, export, parse

DryRun = Annotated[bool, Query(description="Only tell what would be changed")]

router = APIRouter(tags=["configuration"])


@router.get("/config")
async def export_configuration(_: CanAdminister, db: Db) -> dict[str, Any]:
    """Return hosts, storages, schedules, tags and settings, by their names and without secrets."""
    found: dict[str, Any] = msgspec.to_builtins(await db.run_sync(export))
    return found


@router.put("/config")
async def import_configuration(
    body: dict[str, Any],
    actor: CanAdminister,
    db: Db,
    audit: Audited,
    dry_run: DryRun = False,  # noqa: FBT002  a parameter of the address
) -> list[ChangeShown]:
    """Make it as the document says, and tell what was changed, or with `dry_run` what would be. Applied again, nothing is.

    A part that is null or left out stays as it is. Of schedules and tags, what the document does not name is removed; hosts and storages stay.
    """
    changes = await db.run_sync(apply, parse(body))
    if dry_run:
        await db.rollback()
    else:
        await audit(actor, "applied", "configuration", changes=len(changes))
    return [ChangeShown.model_validate(change) for change in changes]
