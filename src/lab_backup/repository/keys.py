"""The repository's keys, and the slots that wrap them.

The root of all keys is 64 random bytes: a *master* key, from which the keys for data, tree nodes and metadata are
derived (HKDF-SHA256, RFC 5869), and an *identity* key for chunk ids, kept apart so that another repository may share the ids
without sharing a key that decrypts. A slot wraps these 64 bytes under a passphrase (Argon2id, RFC 9106, or scrypt, RFC 7914) or under
the content of a key file.
`docs/format/keys.md` is the normative description.
"""

import base64
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from lab_backup.errors import UsageError
from lab_backup.repository.errors import DamagedError, WrongKeyError

KEY = 32  # bytes of every symmetric key here
RECOVERY_PREFIX = "LABKEY1-"

# RFC 9106's second recommended option: 64 MiB, three passes. 0.1 to 0.25 s on one core.
MEMORY_KIB = 64 * 1024
ITERATIONS = 3
LANES = 4
# scrypt with N = 2^17, r = 8, p = 1: 128 MiB, the first choice of the OWASP cheat sheet. The memory in KiB is N when r is 8.
SCRYPT_MEMORY_KIB = 128 * 1024
SCRYPT_R = 8
# What a slot may ask of us; a forged one could otherwise take all memory.
MAX_MEMORY_KIB = 1024 * 1024
MAX_ITERATIONS = 64
MAX_LANES = 64


def derive(key: bytes, purpose: str, *, salt: bytes = b"") -> bytes:
    """Return the 32-byte key for `purpose` (HKDF-SHA256; `salt` makes it one of many)."""
    return HKDF(algorithm=SHA256(), length=KEY, salt=salt, info=f"lab-backup/1/{purpose}".encode()).derive(key)


@dataclass(frozen=True, slots=False)
class RepositoryKeys:
    """All keys of an open repository. Never logged: `repr` shows nothing."""

    master: bytes = field(repr=False)
    identity: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "RepositoryKeys":
        """Return fresh random keys."""
        return cls(os.urandom(KEY), os.urandom(KEY))

    @cached_property
    def chunk_id(self) -> bytes:
        """The key of chunk ids."""
        return derive(self.identity, "chunk id")

    @cached_property
    def node_id(self) -> bytes:
        """The key of tree node ids, apart from chunk ids so that neither can be passed off as the other."""
        return derive(self.identity, "node id")

    @cached_property
    def data(self) -> bytes:
        """Wraps the keys of data packs."""
        return derive(self.master, "data")

    @cached_property
    def tree(self) -> bytes:
        """Wraps the keys of tree packs."""
        return derive(self.master, "tree")

    @cached_property
    def metadata(self) -> bytes:
        """Root of the keys of index objects, manifests, marks and the like."""
        return derive(self.master, "metadata")

    def recovery_key(self) -> str:
        """Return the keys as text for a recovery sheet: groups of five base32 characters, with a checksum."""
        raw = self.master + self.identity
        text = base64.b32encode(raw + hashlib.sha256(raw).digest()[:6]).decode().rstrip("=")
        return RECOVERY_PREFIX + "-".join(text[at : at + 5] for at in range(0, len(text), 5))

    @classmethod
    def from_recovery_key(cls, text: str) -> "RepositoryKeys":
        """Return the keys that `recovery_key` wrote. Case, spaces, dashes and line breaks do not matter.

        Raises WrongKeyError where a character is wrong.
        """
        compact = _compact(text).removeprefix(_compact(RECOVERY_PREFIX))
        try:
            raw = base64.b32decode(compact + "=" * (-len(compact) % 8))
        except ValueError as error:
            raise WrongKeyError(
                "the recovery key has a character that cannot be", hint="0, 1, 8 and 9 never appear in it"
            ) from error
        if len(raw) != 2 * KEY + 6 or hashlib.sha256(raw[:-6]).digest()[:6] != raw[-6:]:
            raise WrongKeyError(
                "the recovery key is incomplete or has a typing error", hint="compare it with the sheet, group by group"
            )
        return cls(raw[:KEY], raw[KEY : 2 * KEY])


def is_recovery_key(text: str) -> bool:
    """Whether `text` is meant to be a recovery key rather than a passphrase: it starts like one."""
    return _compact(text[:64]).startswith(_compact(RECOVERY_PREFIX))


def _compact(text: str) -> str:
    """Drop blanks and dashes; word processors like to put longer dashes (U+2010 to U+2015) and minus signs (U+2212) in."""
    return re.sub(r"[\s\u2010-\u2015\u2212-]", "", text).upper()


MIN_KEY_FILE = 32  # bytes; fewer could be guessed, since nothing slows the guessing down
MAX_KEY_FILE = 64 * 1024  # bytes; more is no key file but a mistaken name


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The content of a key file: random bytes, which open a slot as a passphrase does, without costly derivation."""

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Raise UsageError where the content cannot be a key."""
        if not MIN_KEY_FILE <= len(self.data) <= MAX_KEY_FILE:
            raise UsageError(
                f"a key file has {MIN_KEY_FILE} to {MAX_KEY_FILE} bytes, this one has {len(self.data)}",
                hint="was another file meant? `repo keys add --new-key-file` makes one",
            )

    @classmethod
    def generate(cls) -> "KeyFile":
        """Return the content of a new key file."""
        return cls(os.urandom(2 * KEY))


class KeyKeeper(Protocol):
    """A service outside of the repository that wraps keys under one that it never gives away.

    Which one, and where it is, is the user's setting: nothing that is read from a repository has a say in it.
    """

    name: str
    """For messages and labels."""

    def wrap(self, key: bytes) -> str:
        """Return `key` as only this keeper can unwrap it. Raises where it refuses or cannot be reached."""
        ...

    def unwrap(self, wrapped: str) -> bytes | None:
        """Return what was wrapped; None where it was not wrapped by this keeper. Raises where it refuses or cannot be reached."""
        ...


Secret = str | KeyFile | KeyKeeper
"""What a user opens a repository with: a passphrase (or a recovery key), the content of a key file, or somebody who unwraps."""
Kdf = Literal["argon2id", "scrypt"]


class KeySlot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to open the repository, as stored in `keys/<id>`; JSON, readable without any key."""

    version: int
    id: str
    kind: Literal["argon2id", "scrypt", "key-file", "vault-transit", "plain"]
    label: str
    created: str
    wrapped: bytes
    salt: bytes = b""
    nonce: bytes = b""
    memory_kib: int = 0
    iterations: int = 0
    lanes: int = 0
    wrapped_key: str = ""
    checksum: str = ""

    def __repr__(self) -> str:
        return f"KeySlot({self.id}, {self.kind}, {self.label!r})"  # in a plain slot, `wrapped` is the keys

    def _digest(self) -> str:
        fields = {name: value for name, value in msgspec.to_builtins(self).items() if name != "checksum"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def with_checksum(self) -> "KeySlot":
        """Return the same slot with the checksum that tells damage from a wrong passphrase."""
        return msgspec.structs.replace(self, checksum=self._digest())

    @property
    def intact(self) -> bool:
        """Whether the slot is as it was written. Says nothing against forgery: opening it does."""
        return self.checksum == self._digest()

    def _associated(self, repository_id: str) -> bytes:
        fixed = (self.version, self.id, self.kind, self.memory_kib, self.iterations, self.lanes, self.salt.hex())
        return f"lab-backup/1/slot/{repository_id}/{'/'.join(map(str, fixed))}".encode()

    def fits(self, secret: Secret | None) -> bool:
        """Whether the slot is one for this kind of secret. Others are never tried."""
        if self.kind == "plain":
            return secret is None
        if self.kind == "key-file":
            return isinstance(secret, KeyFile)
        if self.kind == "vault-transit":
            return secret is not None and not isinstance(secret, (str, KeyFile))
        return isinstance(secret, str)

    def _wrapping_key(self, secret: Secret) -> bytes:
        if isinstance(secret, KeyFile):
            return derive(secret.data, "key file", salt=self.salt)
        if not isinstance(secret, str):
            key = secret.unwrap(self.wrapped_key)
            if key is None or len(key) != KEY:
                raise ValueError("it was wrapped by somebody else")
            return derive(key, "vault transit", salt=self.salt)
        if not (
            0 < self.memory_kib <= MAX_MEMORY_KIB
            and 0 < self.iterations <= MAX_ITERATIONS
            and 0 < self.lanes <= MAX_LANES
        ):
            raise DamagedError(
                f"key {self.id} asks for an impossible amount of work to open it", hint="it may be forged; remove it"
            )
        if self.kind == "scrypt":
            return Scrypt(salt=self.salt, length=KEY, n=self.memory_kib, r=SCRYPT_R, p=self.lanes).derive(
                secret.encode()
            )
        kdf = Argon2id(
            salt=self.salt, length=KEY, iterations=self.iterations, lanes=self.lanes, memory_cost=self.memory_kib
        )
        return kdf.derive(secret.encode())

    def open(self, secret: Secret | None, repository_id: str) -> RepositoryKeys | None:
        """Return the keys in this slot, or None where `secret` does not fit."""
        if not self.fits(secret):
            return None
        if secret is None:
            raw = self.wrapped
        else:
            try:
                raw = AESGCM(self._wrapping_key(secret)).decrypt(
                    self.nonce, self.wrapped, self._associated(repository_id)
                )
            except (InvalidTag, ValueError):
                return None
        if len(raw) != 2 * KEY:
            raise DamagedError(f"key {self.id} has the wrong length")
        return RepositoryKeys(raw[:KEY], raw[KEY:])


def plain_slot(keys: RepositoryKeys, *, created: str) -> KeySlot:
    """Return the slot of a repository without encryption: its keys lie open beside the data."""
    raw = keys.master + keys.identity
    return KeySlot(
        version=1, id=secrets.token_hex(8), kind="plain", label="no encryption", created=created, wrapped=raw
    ).with_checksum()


def passphrase_slot(
    keys: RepositoryKeys, passphrase: str, repository_id: str, *, label: str, created: str, kdf: Kdf = "argon2id"
) -> KeySlot:
    """Return a new slot that `passphrase` opens. Raises UsageError for an empty passphrase."""
    if not passphrase:
        raise UsageError("the passphrase is empty", hint="choose one of at least 12 characters, or use --no-encryption")
    memory, iterations, lanes = (MEMORY_KIB, ITERATIONS, LANES) if kdf == "argon2id" else (SCRYPT_MEMORY_KIB, 1, 1)
    empty = KeySlot(
        version=1, id=secrets.token_hex(8), kind=kdf, label=label, created=created, wrapped=b"",
        salt=os.urandom(32), nonce=os.urandom(12), memory_kib=memory, iterations=iterations, lanes=lanes,
    )  # fmt: skip
    return _filled(empty, keys, passphrase, repository_id)


def key_file_slot(keys: RepositoryKeys, key_file: KeyFile, repository_id: str, *, label: str, created: str) -> KeySlot:
    """Return a new slot that the key file opens."""
    empty = KeySlot(
        version=1, id=secrets.token_hex(8), kind="key-file", label=label, created=created, wrapped=b"",
        salt=os.urandom(32), nonce=os.urandom(12),
    )  # fmt: skip
    return _filled(empty, keys, key_file, repository_id)


def keeper_slot(keys: RepositoryKeys, keeper: KeyKeeper, repository_id: str, *, label: str, created: str) -> KeySlot:
    """Return a new slot that opens as long as `keeper` unwraps. It gets a key made for this slot, never the repository's own."""
    empty = KeySlot(
        version=1, id=secrets.token_hex(8), kind="vault-transit", label=label, created=created, wrapped=b"",
        salt=os.urandom(32), nonce=os.urandom(12), wrapped_key=keeper.wrap(os.urandom(KEY)),
    )  # fmt: skip
    return _filled(empty, keys, keeper, repository_id)


def _filled(empty: KeySlot, keys: RepositoryKeys, secret: Secret, repository_id: str) -> KeySlot:
    raw = keys.master + keys.identity
    wrapped = AESGCM(empty._wrapping_key(secret)).encrypt(empty.nonce, raw, empty._associated(repository_id))  # noqa: SLF001  its own class
    return msgspec.structs.replace(empty, wrapped=wrapped).with_checksum()
