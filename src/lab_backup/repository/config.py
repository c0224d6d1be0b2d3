"""The object `config` and its copy: what every reader must know before it has a key, and what every writer must agree on."""

import hmac
import json
import re
from hashlib import sha256
from typing import Literal

import msgspec

from lab_backup.errors import UsageError
from lab_backup.repository.codec import compressor
from lab_backup.repository.errors import DamagedError, NewerVersionError, NotARepositoryError
from lab_backup.repository.keys import derive
from lab_backup.repository.untrusted_json import parse
from lab_backup.units import KiB, MiB, format_size

PATH = "config"
COPY = "config.copy"  # the same bytes once more, written after it
FORMAT = "lab-backup repository"
VERSION = 1
DEFAULT_CHUNK_SIZE = 128 * KiB
MIN_CHUNK_SIZE = 16 * KiB
MAX_CHUNK_SIZE = 16 * MiB
# Longer than any backup is expected to go without looking at the condemned lists (10 minutes), than servers'
# clocks disagree, and than a person needs to notice a wrong deletion.
DEFAULT_GRACE = 24 * 3600


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The repository's constants. `chunk_size` in bytes, `grace` in seconds."""

    format: str
    version: int
    id: str
    created: str
    encryption: Literal["aes-256-gcm", "none"]
    chunk_size: int
    compression: str
    grace: int
    seal: str = ""

    @property
    def repository_id(self) -> bytes:
        """The id as 16 bytes."""
        return bytes.fromhex(self.id)

    def _mac(self, metadata_key: bytes) -> str:
        text = json.dumps(msgspec.to_builtins(msgspec.structs.replace(self, seal="")), sort_keys=True)
        return hmac.new(derive(metadata_key, "config"), text.encode(), sha256).hexdigest()

    def sealed(self, metadata_key: bytes) -> "Config":
        """Return the same with the seal that proves that somebody with the key wrote it."""
        return msgspec.structs.replace(self, seal=self._mac(metadata_key))

    def sealed_by(self, metadata_key: bytes) -> bool:
        """Whether somebody with this key wrote the object, just as it is."""
        return hmac.compare_digest(self.seal.encode(), self._mac(metadata_key).encode())

    def verify(self, metadata_key: bytes) -> None:
        """Raise DamagedError where the object was changed by somebody without the key."""
        if not self.sealed_by(metadata_key):
            raise DamagedError(
                "the repository's config was changed by somebody without its key",
                hint="restore the object `config` or `config.copy` from another copy of the repository",
            )

    def encode(self) -> bytes:
        """Return the stored form: JSON that a person can read."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def check_chunk_size(size: int) -> int:
    """Return `size` if it may be a chunk size: a power of two from 16 KiB to 16 MiB. Raises UsageError."""
    if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise UsageError(
            f"{format_size(size)} cannot be the chunk size",
            hint=f"choose a power of two from {format_size(MIN_CHUNK_SIZE)} to {format_size(MAX_CHUNK_SIZE)}",
        )
    return size


def decode(data: bytes, url: str) -> Config:
    """Return the config in `data`, not yet verified. Raises NotARepositoryError, NewerVersionError, DamagedError."""
    not_ours = f"{url} holds a file named config that is not of a Lab Backup repository"
    try:
        head = parse(data, dict[str, object], "config")
    except DamagedError as error:
        raise NotARepositoryError(
            not_ours,
            hint="if there was a repository, its `config` is damaged: bring it back from another copy of the repository",
        ) from error
    if head.get("format") != FORMAT:
        raise NotARepositoryError(not_ours)
    version = head.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise NewerVersionError(
            f"the repository {url} has format version {version}; this is Lab Backup for version {VERSION}",
            hint="update Lab Backup",
        )
    try:
        config = msgspec.convert(head, Config)
        check_chunk_size(config.chunk_size)
        compressor(config.compression)
    except (msgspec.ValidationError, UsageError) as error:
        raise DamagedError(f"the config of {url} is damaged: {error}", hint="restore it from a copy") from error
    if not re.fullmatch(r"[0-9a-f]{32}", config.id) or config.grace < 0:
        raise DamagedError(f"the config of {url} is damaged", hint="restore it from a copy")
    return config
