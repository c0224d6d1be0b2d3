"""Who uses the service, and what was done."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, false, func
from sqlalchemy.orm import Mapped, mapped_column

from lab_backup.catalog.base import Base, Json, Row


class User(Row):
    """A person. `role` is one of security.roles; a disabled one cannot sign in."""

    __tablename__ = "users"

    username: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str] = mapped_column(default="")
    password_hash: Mapped[str]
    role: Mapped[str]
    enabled: Mapped[bool] = mapped_column(default=True)
    last_login: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    totp: Mapped[str | None]  # sealed; a second factor (RFC 6238) once `totp_confirmed`
    totp_confirmed: Mapped[bool] = mapped_column(default=False, server_default=false())
    totp_step: Mapped[int] = mapped_column(
        BigInteger, default=0, server_default="0"
    )  # the newest that was used: each code is good once
    locked_until: Mapped[datetime | None]


class LoginSession(Row):
    """A sign-in on one device. Its refresh token changes with each use; the one before is kept to notice that somebody uses it again."""

    __tablename__ = "sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    refresh_hash: Mapped[str] = mapped_column(unique=True)
    previous_hash: Mapped[str | None] = mapped_column(index=True)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    address: Mapped[str] = mapped_column(default="")
    agent: Mapped[str] = mapped_column(default="")


class ApiToken(Row):
    """A token for programs. `role` bounds what it may do, below that of its user."""

    __tablename__ = "api_tokens"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    role: Mapped[str]
    expires_at: Mapped[datetime | None]
    last_used: Mapped[datetime | None]


class PersonalDatum(Row):
    """A name or an address that entries of the audit log mention by its id. It goes with its user; the entries stay."""

    __tablename__ = "personal_data"

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    value: Mapped[str]


class AuditEntry(Base):
    """Something that somebody did. Rows are added only, and hold the hash of the one before (security.chain)."""

    __tablename__ = "audit_logs"
    __table_args__ = (Index("ix_audit_logs_resource", "resource_type", "resource_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    user_id: Mapped[UUID | None]  # no foreign key: the entry outlives the person
    action: Mapped[str]
    resource_type: Mapped[str]
    resource_id: Mapped[str] = mapped_column(default="")
    details: Mapped[Json] = mapped_column(default=dict)
    hash: Mapped[str]


class Setting(Base):
    """A value of the service itself, by name."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Json]
