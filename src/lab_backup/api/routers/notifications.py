"""Channels through which a person is told, and the inbox."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from fastapi import APIRouter, status

from lab_backup.api.access import Audited, CanRead
from lab_backup.api.context import Db, InContext
from lab_backup.api.problems import ForbiddenError
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.notifications import ChannelCreate, ChannelShown, ChannelTest, NotificationShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.news import Notification, NotificationConfig
from lab_backup.catalog.paging import page
from lab_backup.catalog.queries import channels_of, inbox_of
from lab_backup.errors import LabBackupError, NotFoundError
from lab_backup.notify.channels import Message, check_address, send
from lab_backup.security.roles import Role
from lab_backup.security.sealed import seal, unseal

router = APIRouter(tags=["notifications"])


def _shown(row: NotificationConfig) -> ChannelShown:
    return ChannelShown(
        id=row.id,
        name=row.name,
        type=row.type,
        least=row.config["least"],
        trusted=row.config["trusted"],
        enabled=row.enabled,
        created_at=row.created_at,
        problem=row.problem,
    )


@router.get("/notifications/channels")
async def list_channels(actor: CanRead, db: Db, paging: InPages) -> Listed[ChannelShown]:
    """List the own channels, without their addresses: most of them hold a secret."""
    found = await page(
        db,
        channels_of(actor.user),
        NotificationConfig.created_at,
        NotificationConfig.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[_shown(row) for row in found.items], next=found.next)


@router.post("/notifications/channels", status_code=status.HTTP_201_CREATED)
async def create_channel(
    body: ChannelCreate, actor: CanRead, context: InContext, db: Db, audit: Audited
) -> ChannelShown:
    """Make a channel: a webhook, or an address as Apprise writes them. What happens from the severity `least` on is sent there."""
    if body.trusted and not actor.role.includes(Role.ADMIN):
        raise ForbiddenError(
            "only administrators may let messages go to this machine or its link", hint="leave `trusted` out"
        )
    check_address(body.type, body.address.get_secret_value())
    identity = uuid4()
    place = f"channel/{identity}"
    row = NotificationConfig(
        id=identity,
        user_id=actor.user,
        name=body.name,
        type=body.type,
        address=seal(context.master_key, body.address.get_secret_value(), place=place),
        secret=seal(context.master_key, "" if body.secret is None else body.secret.get_secret_value(), place=place),
        config={"least": body.least, "trusted": body.trusted},
        enabled=True,
    )
    db.add(row)
    await db.flush()
    await db.refresh(row)
    await audit(actor, "created", "channel", identity, name=body.name, type=body.type)
    return _shown(row)


@router.delete("/notifications/channels/{channel_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_channel(channel_id: UUID, actor: CanRead, db: Db, audit: Audited) -> None:
    """Remove an own channel."""
    row = await db.get(NotificationConfig, channel_id)
    if row is None or row.user_id != actor.user:
        raise NotFoundError(f"there is no channel {channel_id}")
    await db.delete(row)
    await audit(actor, "deleted", "channel", channel_id, name=row.name)


@router.post("/notifications/channels/{channel_id}/test")
async def try_channel(channel_id: UUID, actor: CanRead, context: InContext, db: Db) -> ChannelTest:
    """Send a message through an own channel now."""
    row = await db.get(NotificationConfig, channel_id)
    if row is None or row.user_id != actor.user:
        raise NotFoundError(f"there is no channel {channel_id}")
    place = f"channel/{row.id}"
    kind, trusted = row.type, bool(row.config["trusted"])
    address, secret = (unseal(context.master_key, text, place=place) for text in (row.address, row.secret))
    await db.rollback()  # a server that is slow to answer holds no connection
    message = Message("Lab Backup: a test", "This channel works.", "info")
    try:
        await in_thread(lambda: send(kind, address, message, secret=secret, trusted=trusted))
    except LabBackupError as error:
        return ChannelTest(ok=False, detail=error.message, hint=error.hint)
    return ChannelTest(ok=True)


@router.get("/notifications")
async def inbox(actor: CanRead, db: Db, paging: InPages) -> Listed[NotificationShown]:
    """List what the own channels were told, or are about to be."""
    found = await page(
        db,
        inbox_of(actor.user),
        Notification.created_at,
        Notification.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[NotificationShown.model_validate(row) for row in found.items], next=found.next)


@router.post("/notifications/{notification_id}/read", status_code=status.HTTP_204_NO_CONTENT)
async def read(notification_id: UUID, actor: CanRead, db: Db) -> None:
    """Note that it was read."""
    row = await db.get(Notification, notification_id)
    if row is None or row.user_id != actor.user:
        raise NotFoundError(f"there is no notification {notification_id}")
    row.read_at = row.read_at or datetime.now(UTC)
