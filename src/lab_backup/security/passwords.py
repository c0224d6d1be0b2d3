"""Passwords of people: which are good enough, and how they are kept."""

import base64
import hashlib

import bcrypt
from zxcvbn import zxcvbn

from lab_backup.errors import UsageError

SHORTEST = 12
LONGEST = 256
ROUNDS = 12  # about 0.2 s on one core: slow for who guesses, not for who signs in
WEAKEST = 3  # of 0 to 4: at least 10^8 guesses by one who knows words, names, dates and keyboards
LOOKED_AT = 72  # the estimate takes long for long texts, which are good anyway


class WeakPasswordError(UsageError):
    """The password would be found by guessing."""


def check_password(password: str, *, known: tuple[str, ...] = ()) -> None:
    """Raise WeakPasswordError for a password that is short, long beyond reason, or easy to guess by who knows `known` (name, address)."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise WeakPasswordError(
            f"a password has {SHORTEST} to {LONGEST} characters",
            hint="several words that do not belong together are good",
        )
    found = zxcvbn(password[:LOOKED_AT], user_inputs=[*known, "lab", "backup", "labbackup", "lab-backup"])
    if found["score"] < WEAKEST:
        raise WeakPasswordError(
            "this password is easy to guess: " + (found["feedback"]["warning"] or "it is too common"),
            hint="several words that do not belong together are good",
        )


def hash_password(password: str) -> str:
    """Return what is kept in its place (bcrypt). It is hashed first, since bcrypt itself looks at 72 bytes only."""
    return bcrypt.hashpw(_reduced(password), bcrypt.gensalt(ROUNDS)).decode("ascii")


def password_fits(password: str, kept: str) -> bool:
    """Whether `password` is the one that `kept` was made of. Takes as long for a wrong one."""
    return bcrypt.checkpw(_reduced(password), kept.encode("ascii"))


def _reduced(password: str) -> bytes:
    return base64.b64encode(hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest())


NOBODY = hash_password("the password of an account that does not exist")
"""Compared with where a name is unknown, so that time does not tell which names exist."""
