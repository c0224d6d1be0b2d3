"""Addresses of buckets: `s3://bucket/prefix?endpoint=https://host:port&region=…`."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from lab_backup.errors import UsageError
from lab_backup.storage.base import check_path
from lab_backup.storage.s3.settings import Connection, Encryption, LockMode

CUSTOMER_KEY = "LAB_BACKUP_S3_CUSTOMER_KEY"
"""Environment variable: the key of `sse=customer`, 32 bytes in base64."""

KNOWN = (
    "endpoint", "region", "profile", "ca", "style", "checksums", "sse", "storage-class", "lock-mode", "source-address",
    "concurrency",
)  # fmt: skip
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True, slots=True)
class S3Address:
    """What an address says."""

    bucket: str
    prefix: str
    connection: Connection
    encryption: Encryption | None
    storage_class: str | None
    lock_mode: LockMode
    concurrency: int


def parse(url: str, *, environment: Mapping[str, str] = os.environ) -> S3Address:
    """Return what the address names. Keys are never in it: boto3 finds them. Raises UsageError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError("the address of the bucket is not a valid URL") from error
    if "@" in parts.netloc:
        raise UsageError(
            "the address of the bucket holds a user or password",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile: ?profile=NAME",
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise UsageError(f"{parts.netloc!r} cannot be the name of a bucket", hint="write s3://bucket/prefix")
    values = _values(parts.query)
    prefix = unquote(parts.path).strip("/")
    check_path(prefix, prefix=True)
    endpoint = values.get("endpoint")
    if endpoint is not None and "@" in endpoint:
        raise UsageError(
            "the endpoint holds a user or password, or an @ that looks like it",
            hint="write endpoint=https://host:port; keys come from the environment or a profile",
        )
    if endpoint is not None and not re.fullmatch(r"https?://[^/@?#\s]+/?", endpoint):
        raise UsageError(f"{endpoint!r} is not the address of a server", hint="write endpoint=https://host:port")
    style = _one_of(values, "style", "path" if endpoint else "virtual", ("path", "virtual"))
    connection = Connection(
        endpoint=endpoint,
        region=values.get("region"),
        profile=values.get("profile"),
        ca_bundle=_file(values, "ca"),
        path_style=style == "path",
        checksums="md5" if _one_of(values, "checksums", "crc32", ("crc32", "md5")) == "md5" else "crc32",
        source_address=values.get("source-address"),
    )
    mode = _one_of(values, "lock-mode", "governance", ("governance", "compliance"))
    return S3Address(
        bucket=parts.netloc,
        prefix=prefix,
        connection=connection,
        encryption=_encryption(values.get("sse"), environment),
        storage_class=values.get("storage-class"),
        lock_mode="COMPLIANCE" if mode == "compliance" else "GOVERNANCE",
        concurrency=_count(values.get("concurrency", "8")),
    )


def _values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in KNOWN:
            raise UsageError(f"{name!r} is no setting of a bucket", hint=f"those that are known: {', '.join(KNOWN)}")
        if name in values or not value:
            raise UsageError(f"the setting {name!r} is there twice or empty")
        values[name] = value
    return values


def _one_of(values: Mapping[str, str], name: str, default: str, known: tuple[str, ...]) -> str:
    value = values.get(name, default)
    if value not in known:
        raise UsageError(f"{name}={value} is not known", hint=f"write {name}={' or '.join(known)}")
    return value


def _file(values: Mapping[str, str], name: str) -> Path | None:
    if name not in values:
        return None
    path = Path(values[name])
    if not path.is_file():
        raise UsageError(f"{name}={path}: there is no such file")
    return path


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 128:
        raise UsageError(f"concurrency={text} is not known", hint="write a number from 1 to 128")
    return int(text)


def _encryption(text: str | None, environment: Mapping[str, str]) -> Encryption | None:
    if text is None:
        return None
    kind, _, key = text.partition(":")
    if kind == "s3" and not key:
        return Encryption(algorithm="AES256")
    if kind == "kms":
        return Encryption(algorithm="aws:kms", kms_key=key or None)
    if kind == "customer" and not key:
        try:
            raw = base64.b64decode(environment.get(CUSTOMER_KEY, ""), validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 32:
            raise UsageError(f"sse=customer needs a key: 32 bytes in base64 in {CUSTOMER_KEY}")
        return Encryption(customer_key=raw)
    raise UsageError(f"sse={kind} is not known", hint="write sse=s3, sse=kms, sse=kms:KEY or sse=customer")
