"""Sealed objects: everything in a repository besides packs, key slots and `config`.

Each is encrypted as one message under a key of its own (HKDF of the metadata key with a random salt), so no nonce can repeat however
many writers there are and whatever was rolled back. The object's path is authenticated: a copy under another name does not open.
Layout in `docs/format/objects.md`.
"""

import os
import struct
from enum import IntEnum

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab_backup.repository.codec import Codec, decompress
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.keys import derive
from lab_backup.units import MiB

MAGIC = b"LBSO"
VERSION = 1
HEADER = struct.Struct("<4sBBBx16s32sI")  # magic, version, kind, codec, repository id, salt, raw length
_NONCE = bytes(12)  # every object has its own key, which encrypts this one message
MAX_RAW = 64 * MiB


class Kind(IntEnum):
    """What a sealed object holds."""

    INDEX = 1
    MANIFEST = 2
    MARK = 3
    CONDEMNED = 4
    REMOVED = 5
    DAMAGED = 6
    LEASE = 7
    IMMUTABILITY = 8


def seal(payload: bytes, *, kind: Kind, path: str, repository_id: bytes, key: bytes) -> bytes:
    """Return the object that holds `payload` and opens only as `path`. `key` is the metadata key."""
    if len(payload) > MAX_RAW:
        raise ValueError(f"{path}: {len(payload)} bytes are too many for one object")
    packed = zstandard.ZstdCompressor(level=3).compress(payload)
    codec, body = (Codec.ZSTD, packed) if len(packed) < len(payload) else (Codec.NONE, payload)
    salt = os.urandom(32)
    header = HEADER.pack(MAGIC, VERSION, kind, codec, repository_id, salt, len(payload))
    return header + AESGCM(derive(key, "object", salt=salt)).encrypt(_NONCE, body, header + path.encode())


def unseal(data: bytes, *, kind: Kind, path: str, repository_id: bytes, key: bytes) -> bytes:
    """Return the payload. Raises DamagedError where the object is not what was sealed as `path`.

    Also where it claims a higher version: anybody can write that byte. Which version a repository has, its sealed `config` says.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise DamagedError(f"{path} is not an object of a Lab Backup repository", hint="it was overwritten or cut off")
    _, version, found, codec, owner, salt, raw_length = HEADER.unpack_from(data)
    if version != VERSION:
        raise DamagedError(f"{path} is damaged or forged: it claims to be of version {version}")
    if owner != repository_id or found != kind or raw_length > MAX_RAW:
        raise DamagedError(f"{path} does not belong here", hint="it was copied from elsewhere or forged")
    try:
        body = AESGCM(derive(key, "object", salt=salt)).decrypt(
            _NONCE, data[HEADER.size :], data[: HEADER.size] + path.encode()
        )
    except InvalidTag as error:
        raise DamagedError(f"{path} is damaged or forged: it does not pass authentication") from error
    return bytes(decompress(codec, body, raw_length))
