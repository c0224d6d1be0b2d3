"""The signed-in person, users, API tokens, and the audit log."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, status

from lab_backup.api.access import SIGN_INS, Actor, Audited, CanAdminister, CanRead, limit
from lab_backup.api.context import Db, InContext
from lab_backup.api.problems import ForbiddenError
from lab_backup.api.schemas.base import InPages, Listed
from lab_backup.api.schemas.notifications import NotificationShown
from lab_backup.api.schemas.people import (
    AuditShown,
    ChannelKept,
    JobAsked,
    PasswordChange,
    SessionShown,
    TokenCreate,
    TokenMade,
    TokenShown,
    Totp,
    TotpCode,
    TotpRemoval,
    UserCreate,
    UserExport,
    UserShown,
    UserUpdate,
)  # fmt: skip
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession, Json
from lab_backup.catalog.paging import page
from lab_backup.catalog.people import ApiToken, AuditEntry, LoginSession, User
from lab_backup.catalog.personal import revealed, rows_about
from lab_backup.catalog.queries import (
    everything,
    get,
    other_admins,
    refuse_taken,
    revoke_sessions,
    sessions_of,
    tokens_of,
)
from lab_backup.errors import NotFoundError, UsageError
from lab_backup.security.passwords import check_password, hash_password, password_fits
from lab_backup.security.roles import Role
from lab_backup.security.sealed import seal, unseal
from lab_backup.security.tokens import API_PREFIX, digest, new_secret
from lab_backup.security.totp import address, fitting_step
from lab_backup.security.totp import new_secret as new_totp

router = APIRouter(tags=["people"])


@router.get("/me")
async def me(actor: CanRead, db: Db) -> UserShown:
    """Tell who asks."""
    return UserShown.model_validate(await get(db, User, actor.user, "user"))


@router.post("/me/password", status_code=status.HTTP_204_NO_CONTENT)
async def change_password(body: PasswordChange, actor: CanRead, context: InContext, db: Db, audit: Audited) -> None:
    """Change the own password; all sessions end."""
    await limit(context, SIGN_INS, "password", str(actor.user))
    if actor.session is None:
        raise ForbiddenError("an API token cannot change a password", hint="sign in")
    user = await get(db, User, actor.user, "user")
    if not await in_thread(password_fits, body.current.get_secret_value(), user.password_hash):
        raise UsageError("the current password is wrong")
    await _set_password(db, user, body.new.get_secret_value())
    await audit(actor, "password changed", "user", user.id)


@router.post("/me/totp")
async def enrol(actor: CanRead, context: InContext, db: Db) -> Totp:
    """Begin a second factor. It counts once a code of it was sent to `me/totp/verify`."""
    user: User = await _signed_in(actor, db)
    if user.totp_confirmed:
        raise UsageError("there is a second factor already", hint="take it away first")
    secret = new_totp()
    user.totp = seal(context.master_key, secret, place=f"totp/{user.id}")
    return Totp(secret=secret, address=address(secret, user.username))


@router.post("/me/totp/verify", status_code=status.HTTP_204_NO_CONTENT)
async def confirm(body: TotpCode, actor: CanRead, context: InContext, db: Db, audit: Audited) -> None:
    """Make the second factor count: from now on signing in needs a code."""
    await limit(context, SIGN_INS, "totp", str(actor.user))
    user: User = await _signed_in(actor, db)
    if user.totp is None or user.totp_confirmed:
        raise UsageError("no second factor is being set up", hint="begin with POST /me/totp")
    secret = unseal(context.master_key, user.totp, place=f"totp/{user.id}")
    step = fitting_step(secret, body.code, now=datetime.now(UTC), after=user.totp_step)
    if step is None:
        raise UsageError("the code is wrong", hint="look at the clock of the device that makes it")
    user.totp_step, user.totp_confirmed = step, True
    await audit(actor, "second factor added", "user", user.id)


@router.post("/me/totp/disable", status_code=status.HTTP_204_NO_CONTENT)
async def disable(body: TotpRemoval, actor: CanRead, context: InContext, db: Db, audit: Audited) -> None:
    """Take the second factor away."""
    await limit(context, SIGN_INS, "totp", str(actor.user))
    user: User = await _signed_in(actor, db)
    if not await in_thread(password_fits, body.password.get_secret_value(), user.password_hash):
        raise UsageError("the password is wrong")
    user.totp, user.totp_confirmed = None, False
    await audit(actor, "second factor removed", "user", user.id)


async def _signed_in(actor: Actor, db: AsyncSession) -> User:
    """Return the person behind a sign-in. Raises ForbiddenError for an API token."""
    if actor.session is None:
        raise ForbiddenError("an API token cannot change how a person signs in", hint="sign in")
    user: User = await get(db, User, actor.user, "user")
    return user


def _in_person(actor: Actor) -> None:
    """Raise ForbiddenError for an API token: who has stolen one must not make it last."""
    if actor.session is None:
        raise ForbiddenError("this is not done with an API token", hint="sign in")


@router.get("/me/sessions")
async def my_sessions(actor: CanRead, db: Db, paging: InPages) -> Listed[SessionShown]:
    """List the own sign-ins that have not ended."""
    found = await page(
        db,
        sessions_of(actor.user, datetime.now(UTC)),
        LoginSession.created_at,
        LoginSession.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[SessionShown.model_validate(row) for row in found.items], next=found.next)


@router.delete("/me/sessions/{session_id}", status_code=status.HTTP_204_NO_CONTENT)
async def end_session(session_id: UUID, actor: CanRead, db: Db, audit: Audited) -> None:
    """End one of the own sign-ins."""
    _in_person(actor)
    kept = await db.get(LoginSession, session_id)
    if kept is None or kept.user_id != actor.user:
        raise NotFoundError(f"there is no session {session_id}")
    kept.revoked_at = datetime.now(UTC)
    await audit(actor, "session ended", "session", session_id)


@router.get("/users")
async def list_users(_: CanAdminister, db: Db, paging: InPages) -> Listed[UserShown]:
    """List users."""
    found = await page(
        db, everything(User), User.created_at, User.id, cursor=paging.cursor, limit=paging.limit, order=paging.order
    )
    return Listed(items=[UserShown.model_validate(row) for row in found.items], next=found.next)


@router.post("/users", status_code=status.HTTP_201_CREATED)
async def create_user(body: UserCreate, actor: CanAdminister, db: Db, audit: Audited) -> UserShown:
    """Make a user."""
    await refuse_taken(db, User.username, body.username, "the user")
    password = body.password.get_secret_value()
    await in_thread(lambda: check_password(password, known=(body.username, body.email)))
    user = User(
        username=body.username, email=body.email, role=body.role, password_hash=await in_thread(hash_password, password)
    )
    db.add(user)
    await db.flush()
    await db.refresh(user)
    await audit(actor, "created", "user", user.id, username=user.username, role=user.role)
    return UserShown.model_validate(user)


@router.get("/users/{user_id}")
async def show_user(user_id: UUID, _: CanAdminister, db: Db) -> UserShown:
    """Show a user."""
    return UserShown.model_validate(await get(db, User, user_id, "user"))


@router.put("/users/{user_id}")
async def update_user(user_id: UUID, body: UserUpdate, actor: CanAdminister, db: Db, audit: Audited) -> UserShown:
    """Change a user. The last administrator stays one."""
    user = await get(db, User, user_id, "user")
    weaker = (body.role is not None and body.role is not Role.ADMIN) or body.enabled is False
    if user.role == Role.ADMIN and weaker and await other_admins(db, user_id) == 0:
        raise UsageError("this is the last administrator", hint="make another one first")
    if body.password is not None and user_id == actor.user:
        raise UsageError("one's own password needs the old one", hint="POST /me/password")
    if body.password is not None:
        await _set_password(db, user, body.password.get_secret_value())
    for name in ("email", "role", "enabled"):
        value = getattr(body, name)
        if value is not None:
            setattr(user, name, value)
    if body.enabled is False:
        await revoke_sessions(db, user_id, datetime.now(UTC))
    changed = sorted(body.model_fields_set)
    await audit(actor, "changed", "user", user_id, fields=", ".join(changed))
    return UserShown.model_validate(user)


@router.delete("/users/{user_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_user(user_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> None:
    """Erase a user with all that belongs to them, and their name and addresses from the audit log. What they did stays there under their id, and the log's chain holds."""
    user = await get(db, User, user_id, "user")
    if user.role == Role.ADMIN and await other_admins(db, user_id) == 0:
        raise UsageError("this is the last administrator", hint="make another one first")
    await db.delete(user)
    await db.flush()
    await audit(actor, "deleted", "user", str(user_id))


@router.get("/users/{user_id}/export")
async def export_user(user_id: UUID, actor: CanRead, db: Db, audit: Audited) -> UserExport:
    """Return all that is kept of a user, for themselves or by an administrator (GDPR, article 15 and 20); of each kind the newest ten thousand."""
    if actor.user != user_id and not actor.role.includes(Role.ADMIN):
        raise ForbiddenError("only administrators may look at what is kept of others", hint="ask one")
    user = await get(db, User, user_id, "user")
    found = await rows_about(db, user_id)
    entries = found["audit"]
    details = await revealed(db, entries)
    await audit(actor, "exported", "user", user_id)
    return UserExport(
        user=UserShown.model_validate(user),
        sessions=[SessionShown.model_validate(row) for row in found["sessions"]],
        tokens=[TokenShown.model_validate(row) for row in found["tokens"]],
        channels=[ChannelKept.model_validate(row) for row in found["channels"]],
        notifications=[NotificationShown.model_validate(row) for row in found["notifications"]],
        jobs=[JobAsked.model_validate(row) for row in found["jobs"]],
        audit=_entries(entries, details),
    )


def _entries(rows: Sequence[AuditEntry], details: list[Json]) -> list[AuditShown]:
    return [
        AuditShown.model_validate({**vars(row), "details": plain}) for row, plain in zip(rows, details, strict=True)
    ]


@router.get("/tokens")
async def list_tokens(actor: CanRead, db: Db, paging: InPages) -> Listed[TokenShown]:
    """List the own API tokens."""
    found = await page(
        db,
        tokens_of(actor.user),
        ApiToken.created_at,
        ApiToken.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=[TokenShown.model_validate(row) for row in found.items], next=found.next)


@router.post("/tokens", status_code=status.HTTP_201_CREATED)
async def create_token(body: TokenCreate, actor: CanRead, db: Db, audit: Audited) -> TokenMade:
    """Make an API token. It is shown this once."""
    _in_person(actor)
    if not actor.role.includes(body.role):
        raise ForbiddenError(
            f"a token cannot be {body.role} where its user is {actor.role}",
            hint="choose a role that is not above your own",
        )
    if body.expires_at is not None and (body.expires_at.tzinfo is None or body.expires_at <= datetime.now(UTC)):
        raise UsageError("expires_at is no moment to come with a time zone", hint="such as 2030-01-31T00:00:00Z")
    secret = new_secret(API_PREFIX)
    row = ApiToken(
        user_id=actor.user, token_hash=digest(secret), name=body.name, role=body.role, expires_at=body.expires_at
    )
    db.add(row)
    await db.flush()
    await db.refresh(row)
    await audit(actor, "created", "token", row.id, name=row.name, role=row.role)
    return TokenMade(**TokenShown.model_validate(row).model_dump(), token=secret)


@router.delete("/tokens/{token_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_token(token_id: UUID, actor: CanRead, db: Db, audit: Audited) -> None:
    """Take an own API token back; it is refused from now on."""
    _in_person(actor)
    row = await db.get(ApiToken, token_id)
    if row is None or row.user_id != actor.user:
        raise NotFoundError(f"there is no token {token_id}")
    await db.delete(row)
    await audit(actor, "deleted", "token", token_id, name=row.name)


@router.get("/audit")
async def list_audit(_: CanAdminister, db: Db, paging: InPages) -> Listed[AuditShown]:
    """List what was done."""
    found = await page(
        db,
        everything(AuditEntry),
        AuditEntry.timestamp,
        AuditEntry.id,
        cursor=paging.cursor,
        limit=paging.limit,
        order=paging.order,
    )
    return Listed(items=_entries(found.items, await revealed(db, found.items)), next=found.next)


async def _set_password(db: AsyncSession, user: User, password: str) -> None:
    known = (user.username, user.email)
    await in_thread(lambda: check_password(password, known=known))
    user.password_hash = await in_thread(hash_password, password)
    await revoke_sessions(db, user.id, datetime.now(UTC))
