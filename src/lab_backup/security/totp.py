"""Second factors: codes that change every thirty seconds (RFC 6238), each good once."""

import hmac
from datetime import datetime

import pyotp

ISSUER = "Lab Backup"
STEP = 30  # seconds
LATE = 1  # steps that a clock may be off, either way


def new_secret() -> str:
    """Return a new secret, in base32."""
    return pyotp.random_base32()


def address(secret: str, username: str) -> str:
    """Return the address that an authenticator reads from a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=ISSUER)


def fitting_step(secret: str, code: str, *, now: datetime, after: int) -> int | None:
    """Return the step whose code this is, if it is later than `after`, the last one that was used; else None."""
    totp = pyotp.TOTP(secret)
    current = int(now.timestamp()) // STEP
    for step in range(current - LATE, current + LATE + 1):
        if step > after and hmac.compare_digest(totp.generate_otp(step), code):
            return step
    return None
