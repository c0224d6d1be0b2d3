"""Tokens: short-lived access tokens that are signed (RFC 7519), and long-lived ones that are looked up by their hash."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import jwt

from lab_backup.errors import AccessDeniedError

ACCESS_LIFE = timedelta(minutes=15)
REFRESH_LIFE = timedelta(days=14)
ALGORITHM = "HS256"  # pinned: what a token says of its own algorithm is not believed
API_PREFIX = "labb_"  # so that scanners for leaked secrets can know them


class TokenError(AccessDeniedError):
    """The token is not ours, was changed, or has expired."""


@dataclass(frozen=True, slots=True)
class Access:
    """Whom an access token stands for, and in which session it was given out."""

    user: UUID
    session: UUID


def make_access(key: bytes, access: Access, *, now: datetime) -> str:
    """Return an access token that is good for ACCESS_LIFE from `now` (UTC)."""
    claims = {"sub": str(access.user), "sid": str(access.session), "iat": now, "exp": now + ACCESS_LIFE}
    return jwt.encode(claims, key, algorithm=ALGORITHM)


def read_access(key: bytes, token: str) -> Access:
    """Return whom `token` stands for. Raises TokenError."""
    try:
        claims = jwt.decode(token, key, algorithms=[ALGORITHM], options={"require": ["sub", "sid", "exp"]})
        return Access(UUID(claims["sub"]), UUID(claims["sid"]))
    except (jwt.PyJWTError, ValueError) as error:
        raise TokenError("the access token is not valid any more", hint="sign in again, or refresh it") from error


def new_secret(prefix: str = "") -> str:
    """Return a random text of 256 bits."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return what is kept of a random secret. It is long enough that a fast hash does."""
    return hashlib.sha256(secret.encode()).hexdigest()
