"""Signing in and out, and the first administrator."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from fastapi import APIRouter, Request, status

from lab_backup.api.access import REFRESHES, SIGN_INS, Audited, CanRead, address_of, limit
from lab_backup.api.context import Context, Db, InContext
from lab_backup.api.schemas.people import Login, Refresh, Setup, SetupState, Tokens, UserShown
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession, Session
from lab_backup.catalog.people import LoginSession, Setting, User
from lab_backup.catalog.queries import count_users, session_with, user_named
from lab_backup.catalog.telling import tell
from lab_backup.security.passwords import NOBODY, check_password, hash_password, password_fits
from lab_backup.security.roles import Role
from lab_backup.security.sealed import unseal
from lab_backup.security.tokens import ACCESS_LIFE, REFRESH_LIFE, Access, TokenError, digest, make_access, new_secret
from lab_backup.security.totp import fitting_step

router = APIRouter(tags=["auth"])

FREE_FAILURES = 5
LONGEST_LOCK = timedelta(hours=1)
SETUP = "setup-token"


@router.post("/auth/login")
async def login(body: Login, request: Request, context: InContext, db: Db, audit: Audited) -> Tokens:
    """Sign in. A wrong name, a wrong password and a wrong or missing code look alike; after some failures the account is locked for ever longer."""
    await limit(context, SIGN_INS, "login", address_of(request))
    now = datetime.now(UTC)
    refused = TokenError(
        "name, password or code is wrong, or the account is locked", hint="wait a little, and try again"
    )
    user = await user_named(db, body.username, lock=True)
    fits = await in_thread(
        password_fits, body.password.get_secret_value(), NOBODY if user is None else user.password_hash
    )
    locked = user is not None and user.locked_until is not None and user.locked_until > now
    fits = fits and user is not None and _second_factor_fits(user, body.code, context, now)
    if user is None or not fits or locked or not user.enabled:
        if user is not None and not fits and not locked:
            user.failures += 1
            if user.failures >= FREE_FAILURES:
                user.locked_until = now + min(LONGEST_LOCK, timedelta(minutes=2 ** (user.failures - FREE_FAILURES)))
                await db.run_sync(_tell_of_lock, user.username, address_of(request))
        await audit(None, "login failed", "user", "" if user is None else user.id, address=address_of(request))
        await db.commit()
        raise refused
    user.failures, user.locked_until, user.last_login = 0, None, now
    tokens = await _open(db, context, user, request)
    await audit(None, "login", "user", user.id, address=address_of(request))
    return tokens


def _tell_of_lock(session: Session, username: str, address: str) -> None:
    tell(
        session,
        kind="account locked",
        severity="warning",
        subject=f"the account {username} is locked for a while",
        message=f"Wrong passwords or codes, the last of them from {address}. If that was not {username}, look at the audit log.",
    )


@router.post("/auth/refresh")
async def refresh(body: Refresh, request: Request, context: InContext, db: Db, audit: Audited) -> Tokens:
    """Exchange a refresh token for a new pair. One that was used before ends the session: it was stolen, or its answer was lost."""
    await limit(context, REFRESHES, "refresh", address_of(request))
    now = datetime.now(UTC)
    found = digest(body.refresh_token.get_secret_value())
    kept = await session_with(db, found)
    gone = TokenError("this session has ended", hint="sign in again")
    if kept is None or kept.revoked_at is not None or kept.expires_at <= now:
        raise gone
    if kept.previous_hash == found:
        kept.revoked_at = now
        await audit(
            None, "refresh token used twice", "session", kept.id, whose=kept.user_id, address=address_of(request)
        )
        await db.commit()
        raise gone
    user = await db.get(User, kept.user_id)
    if user is None or not user.enabled:
        raise gone
    secret = new_secret()
    kept.previous_hash, kept.refresh_hash, kept.expires_at = found, digest(secret), now + REFRESH_LIFE
    return _tokens(context, user, kept, secret, now)


@router.post("/auth/logout", status_code=status.HTTP_204_NO_CONTENT)
async def logout(actor: CanRead, db: Db, audit: Audited) -> None:
    """End this session."""
    if actor.session is not None:
        kept = await db.get(LoginSession, actor.session)
        if kept is not None:
            kept.revoked_at = datetime.now(UTC)
    await audit(actor, "logout", "user", actor.user)


@router.get("/setup")
async def setup_state(db: Db) -> SetupState:
    """Tell whether the first administrator is still missing."""
    return SetupState(needed=await count_users(db) == 0)


@router.post("/setup", status_code=status.HTTP_201_CREATED)
async def setup(body: Setup, request: Request, context: InContext, db: Db, audit: Audited) -> UserShown:
    """Make the first administrator, once, with the token that the service printed."""
    await limit(context, SIGN_INS, "setup", address_of(request))
    kept = await db.get(Setting, SETUP, with_for_update=True)
    if kept is None or await count_users(db) or kept.value["hash"] != digest(body.token.get_secret_value()):
        raise TokenError(
            "this set-up link is not valid any more",
            hint="start the service again: it prints a new one while there is no user",
        )
    password = body.password.get_secret_value()
    await in_thread(lambda: check_password(password, known=(body.username, body.email)))
    user = User(
        username=body.username,
        email=body.email,
        role=Role.ADMIN,
        password_hash=await in_thread(hash_password, password),
    )
    db.add(user)
    await db.delete(kept)
    await db.flush()
    await db.refresh(user)
    await audit(None, "set up", "user", user.id, username=user.username)
    return UserShown.model_validate(user)


def _second_factor_fits(user: User, code: str | None, context: Context, now: datetime) -> bool:
    """Whether the code is right, where one is needed, and was not used before."""
    if not user.totp_confirmed or user.totp is None:
        return True
    step = fitting_step(
        unseal(context.master_key, user.totp, place=f"totp/{user.id}"), code or "", now=now, after=user.totp_step
    )
    if step is not None:
        user.totp_step = step
    return step is not None


async def _open(db: AsyncSession, context: Context, user: User, request: Request) -> Tokens:
    now = datetime.now(UTC)
    secret = new_secret()
    kept = LoginSession(
        id=uuid4(),
        user_id=user.id,
        refresh_hash=digest(secret),
        expires_at=now + REFRESH_LIFE,
        address=address_of(request),
        agent=request.headers.get("user-agent", "")[:200],
    )
    db.add(kept)
    return _tokens(context, user, kept, secret, now)


def _tokens(context: Context, user: User, kept: LoginSession, secret: str, now: datetime) -> Tokens:
    access = make_access(context.token_key, Access(user.id, kept.id), now=now)
    return Tokens(access_token=access, refresh_token=secret, expires_in=int(ACCESS_LIFE.total_seconds()))
