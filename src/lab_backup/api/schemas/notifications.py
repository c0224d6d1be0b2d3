"""Channels and news."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, SecretStr

from lab_backup.api.schemas.base import Body, Name, Secret, Shown

Severity = Literal["info", "warning", "error"]


class ChannelCreate(Body):
    """A channel. `address`: of a webhook, or as Apprise writes it (`mailtos://user:password@host?to=me@example.org`), or `syslog+tls://host:6514`. `secret` signs webhooks."""

    name: Name
    type: Literal["webhook", "apprise", "syslog"]
    address: Annotated[SecretStr, Field(min_length=1, max_length=2000)]
    secret: Secret | None = None
    least: Severity = "warning"
    trusted: bool = False


class ChannelShown(Shown):
    """A channel, without address and secret. `problem` says why the last message did not go out."""

    id: UUID
    name: str
    type: str
    least: Severity
    trusted: bool
    enabled: bool
    created_at: datetime
    problem: str | None


class ChannelTest(Shown):
    """Whether a message went out."""

    ok: bool
    detail: str | None = None
    hint: str | None = None


class NotificationShown(Shown):
    """Something that was told, or is about to be (`sent_at` null)."""

    id: UUID
    created_at: datetime
    type: str
    severity: Severity
    subject: str
    message: str
    sent_at: datetime | None
    read_at: datetime | None
