"""Credentials at rest: each is encrypted by a key of its own, which the master key wraps (envelope encryption).

Who steals the database alone reads nothing. A new master key rewraps the small keys and touches no secret.
"""

import base64
import os
import secrets as random
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab_backup.errors import LabBackupError

VERSION = "s1"
KEY_SIZE = 32
NONCE_SIZE = 12


class SealError(LabBackupError):
    """A secret cannot be read with this master key, or was put in another one's place."""


def seal(master: bytes, secret: str, *, place: str) -> str:
    """Return `secret` encrypted for `place` (such as `storage/ID`): moved to another row it does not open."""
    own = AESGCM.generate_key(256)
    wrapped = _encrypt(master, own, f"{VERSION} key {place}")
    return ".".join((VERSION, _text(wrapped), _text(_encrypt(own, secret.encode(), f"{VERSION} secret {place}"))))


def unseal(master: bytes, sealed: str, *, place: str) -> str:
    """Return the secret. Raises SealError."""
    try:
        version, wrapped, body = sealed.split(".")
        if version != VERSION:
            raise ValueError
        own = _decrypt(master, _bytes(wrapped), f"{VERSION} key {place}")
        return _decrypt(own, _bytes(body), f"{VERSION} secret {place}").decode()
    except (ValueError, InvalidTag) as error:
        raise SealError(
            f"the credentials of {place} cannot be read with this service's master key",
            hint="the folder `secrets` must be the one that this database was made with; or enter them anew",
        ) from error


def rewrap(old: bytes, new: bytes, sealed: str, *, place: str) -> str:
    """Return the same secret under a new master key. Raises SealError."""
    return seal(new, unseal(old, sealed, place=place), place=place)


def read_or_make_key(path: Path) -> bytes:
    """Return the key in the file `path`, which is made with mode 0600 where it is missing. Raises SealError for one that is none.

    Of several processes that make it at once one wins, and none ever sees half a key.
    """
    try:
        return _read_key(path)
    except FileNotFoundError:
        part = path.with_name(f".{path.name}.{random.token_hex(8)}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(random.token_bytes(KEY_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(part)
        finally:
            part.unlink(missing_ok=True)
        return _read_key(path)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_SIZE:
        raise SealError(f"{path} does not hold a key of {KEY_SIZE} bytes", hint="bring it back from a backup")
    return key


def _encrypt(key: bytes, data: bytes, context: str) -> bytes:
    nonce = random.token_bytes(NONCE_SIZE)
    return nonce + AESGCM(key).encrypt(nonce, data, context.encode())


def _decrypt(key: bytes, data: bytes, context: str) -> bytes:
    return AESGCM(key).decrypt(data[:NONCE_SIZE], data[NONCE_SIZE:], context.encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text)
