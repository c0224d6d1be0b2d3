"""People, their sessions and tokens."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from lab_backup.api.schemas.base import Body, Name, Secret, Shown
from lab_backup.api.schemas.notifications import NotificationShown
from lab_backup.security.roles import Role

Username = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
Email = Annotated[str, Field(max_length=254, pattern=r"^$|^[^@\s\x00]+@[^@\s\x00]+$")]


Code = Annotated[str, Field(pattern=r"^[0-9]{6}$")]


class Login(Body):
    """Name and password, and the code of the second factor where there is one."""

    username: Annotated[str, Field(max_length=64)]
    password: Secret
    code: Code | None = None


class Refresh(Body):
    """A refresh token, which is good for one use."""

    refresh_token: Secret


class Tokens(Shown):
    """A pair of tokens. `expires_in` is the life of the access token, in seconds."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105  not a password but the word of RFC 6750
    expires_in: int


class Setup(Body):
    """The first administrator; `token` is in the link that the service printed when it started."""

    token: Secret
    username: Username
    password: Secret
    email: Email = ""


class SetupState(Shown):
    """Whether the first administrator is still missing."""

    needed: bool


class UserCreate(Body):
    """A new user."""

    username: Username
    password: Secret
    email: Email = ""
    role: Role


class UserUpdate(Body):
    """What changes of a user; null: it stays. A new password ends all sessions."""

    email: Email | None = None
    role: Role | None = None
    enabled: bool | None = None
    password: Secret | None = None


class UserShown(Shown):
    """A user, without anything of the password."""

    id: UUID
    username: str
    email: str
    role: Role
    enabled: bool
    totp_confirmed: bool
    created_at: datetime
    last_login: datetime | None


class PasswordChange(Body):
    """The old password and the new one."""

    current: Secret
    new: Secret


class Totp(Shown):
    """The secret of a second factor, shown this once, and the address that authenticators read from a QR code."""

    secret: str
    address: str


class TotpCode(Body):
    """A code of the second factor."""

    code: Code


class TotpRemoval(Body):
    """The password, which takes the second factor away."""

    password: Secret


class SessionShown(Shown):
    """A sign-in on some device."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    address: str
    agent: str


class TokenCreate(Body):
    """An API token; its role is at most that of its user. `expires_at` null: never."""

    name: Name
    role: Role
    expires_at: datetime | None = None


class TokenShown(Shown):
    """An API token, without the token."""

    id: UUID
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used: datetime | None


class TokenMade(TokenShown):
    """A new API token; it is shown this once."""

    token: str


class AuditShown(Shown):
    """Something that somebody did."""

    id: int
    timestamp: datetime
    user_id: UUID | None
    action: str
    resource_type: str
    resource_id: str
    details: dict[str, Any]


class ChannelKept(Shown):
    """A channel of a user, without its address, which is sealed."""

    id: UUID
    name: str
    type: str
    created_at: datetime


class JobAsked(Shown):
    """A job that a user asked for."""

    id: UUID
    type: str
    title: str
    created_at: datetime


class UserExport(Shown):
    """All that is kept of a user."""

    user: UserShown
    sessions: list[SessionShown]
    tokens: list[TokenShown]
    channels: list[ChannelKept]
    notifications: list[NotificationShown]
    jobs: list[JobAsked]
    audit: list[AuditShown]
