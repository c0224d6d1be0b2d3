"""Who asks, and what they may do: a type in each endpoint's signature."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem, RateLimitItemPerMinute
from redis.exceptions import RedisError

from lab_backup.api.context import Context, Db, InContext
from lab_backup.api.problems import ForbiddenError, TooManyRequestsError
from lab_backup.catalog import audit
from lab_backup.catalog.base import AsyncSession, Json
from lab_backup.catalog.people import LoginSession, User
from lab_backup.catalog.queries import session_and_user, token_with
from lab_backup.security.roles import Role
from lab_backup.security.tokens import API_PREFIX, TokenError, digest, read_access

SIGN_INS = RateLimitItemPerMinute(20)
REFRESHES = RateLimitItemPerMinute(240)  # a page that is loaded refreshes; nobody guesses such a token

bearer = HTTPBearer(auto_error=False, description="An access token of POST /auth/login, or an API token")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: the user's id, the role that counts (an API token may have less than its user), and the session of a browser."""

    user: UUID
    role: Role
    session: UUID | None


def address_of(request: Request) -> str:
    """Return the address that a request comes from."""
    return "local" if request.client is None else request.client.host


async def limit(context: Context, item: RateLimitItem, *names: str) -> None:
    """Count a request against a limit. Raises TooManyRequestsError. Where Redis is away nothing is counted: the database still locks accounts."""
    try:
        if not await context.limiter.hit(item, *names):
            stats = await context.limiter.get_window_stats(item, *names)
            raise TooManyRequestsError(max(1, int(stats.reset_time - datetime.now(UTC).timestamp())))
    except (RedisError, OSError):
        return


async def actor_of(token: str, context: Context, db: AsyncSession) -> Actor:
    """Return whom a token stands for. Raises TokenError."""
    now = datetime.now(UTC)
    gone = TokenError("this token is not valid any more", hint="sign in again")
    if token.startswith(API_PREFIX):
        kept = await token_with(db, digest(token))
        if kept is None or (kept.expires_at is not None and kept.expires_at <= now):
            raise gone
        user = await db.get(User, kept.user_id)
        if user is None or not user.enabled:
            raise gone
        if kept.last_used is None or (now - kept.last_used).total_seconds() > 60:
            kept.last_used = now
        least = min(Role(kept.role), Role(user.role), key=tuple(Role).index)
        return Actor(user.id, least, None)
    access = read_access(context.token_key, token)
    found = await session_and_user(db, access.session)
    if found is None:
        raise gone
    session, user = found
    if session.revoked_at is not None or user.id != access.user or not user.enabled:
        raise gone
    return Actor(user.id, Role(user.role), session.id)


async def is_still(actor: Actor, token: str, context: Context, db: AsyncSession) -> bool:
    """Whether somebody who came in by this token is still let in: what lasts longer than an access token depends on its sign-in alone."""
    if actor.session is None:
        try:
            return (await actor_of(token, context, db)).role is actor.role
        except TokenError:
            return False
    kept = await db.get(LoginSession, actor.session)
    user = await db.get(User, actor.user)
    return (
        kept is not None and kept.revoked_at is None and user is not None and user.enabled and user.role == actor.role
    )


async def current(request: Request, credentials: Credentials, context: InContext, db: Db) -> Actor:
    """Return who asks. Raises TokenError, TooManyRequestsError."""
    if credentials is None:
        await limit(context, context.requests, "address", address_of(request))
        raise TokenError("this needs a token", hint="sign in: POST /api/v1/auth/login")
    actor = await actor_of(credentials.credentials, context, db)
    await limit(context, context.requests, "user", str(actor.user))
    return actor


def _at_least(role: Role) -> Callable[[Actor], Awaitable[Actor]]:
    async def allowed(actor: Annotated[Actor, Depends(current)]) -> Actor:
        if not actor.role.includes(role):
            raise ForbiddenError(f"this needs the role {role}", hint="ask an administrator")
        return actor

    return allowed


CanRead = Annotated[Actor, Depends(_at_least(Role.VIEWER))]
CanOperate = Annotated[Actor, Depends(_at_least(Role.OPERATOR))]
CanAdminister = Annotated[Actor, Depends(_at_least(Role.ADMIN))]


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes the audit log for one request, in its transaction."""

    db: AsyncSession
    key: bytes

    async def __call__(
        self,
        actor: Actor | None,
        action: str,
        resource_type: str,
        resource_id: object = "",
        *,
        whose: UUID | None = None,
        **details: object,
    ) -> None:
        """Note what `actor` did. Details hold no secret; those that are personal are of the user that it was done to, or of `whose`."""
        plain: Json = {
            key: value if isinstance(value, (str, int, bool, type(None))) else str(value)
            for key, value in details.items()
        }
        await audit.append(
            self.db,
            self.key,
            user=None if actor is None else actor.user,
            action=action,
            resource_type=resource_type,
            resource_id=str(resource_id),
            details=plain,
            whose=resource_id if resource_type == "user" and isinstance(resource_id, UUID) else whose,
        )


def _audit(db: Db, context: InContext) -> Audit:
    return Audit(db, context.audit_key)


Audited = Annotated[Audit, Depends(_audit)]
