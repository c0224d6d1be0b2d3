"""What a bucket is reached with: plain values, which an address and the environment are turned into elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Checksums = Literal["crc32", "md5"]
LockMode = Literal["GOVERNANCE", "COMPLIANCE"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. `repr` shows no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the server encrypts what it stores, besides our own encryption: its keys, a key of its KMS, or one that we send (32 bytes)."""

    algorithm: Literal["AES256", "aws:kms"] | None = None
    kms_key: str | None = None
    customer_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to talk to the server. None and "" mean what boto3 finds in the usual AWS variables and files.

    `endpoint` is the address of a server that is not Amazon's. `ca_bundle` holds the certificates that are trusted in place of the system's.
    `path_style` puts the bucket into the path in place of the host name, which most other servers need. `checksums`: `crc32` is what S3 and
    current servers check; `md5` is for older ones, which refuse the former. `source_address` is the address of this machine that all
    connections come from. Timeouts in seconds.
    """

    endpoint: str | None = None
    region: str | None = None
    credentials: Credentials | None = None
    profile: str | None = None
    ca_bundle: Path | None = None
    path_style: bool = True
    checksums: Checksums = "crc32"
    source_address: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
