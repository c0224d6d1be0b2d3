"""From the address that a user writes to the store behind it."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from lab_backup.errors import UsageError
from lab_backup.storage.base import StorageBackend
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.retry import RetryingStorage, opened_patiently

if TYPE_CHECKING:
    from lab_backup.storage.metered import StorageMetrics

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(file):(?=/)", re.IGNORECASE)
_KNOWN = "a path such as /srv/backups, file:///srv/backups, s3://bucket/prefix, nfs://server/export/path, or smb://user@host/share/path"


def open_storage(
    url: str,
    *,
    create: bool = False,
    metrics: "StorageMetrics | None" = None,
    credentials: Mapping[str, str] | None = None,
) -> StorageBackend:
    """Open the store at `url`: a path, absolute or relative to the working directory, a `file:` URL (RFC 8089), `s3:`, `nfs:` or `smb:`.

    With `create`, make its folder where there is none; the folder above must exist, and so must a bucket. A store that holds something
    already is opened as it is. Passing failures (a file server that restarts) are waited out; each attempt is counted in `metrics`.
    `credentials` are what else comes from the environment, by the same names (AWS_ACCESS_KEY_ID, LAB_BACKUP_SMB_PASSWORD …). Raises UsageError for an address that is none, StorageNotFoundError, StorageAccessError.
    """
    if url.lower().startswith("s3://"):
        return _open_bucket(url, metrics, credentials)
    if url.lower().startswith("smb://"):
        return _open_share(url, metrics, credentials, create=create)
    if url.lower().startswith("nfs://"):
        return _open_export(url, metrics, create=create)
    path = local_path(url)
    return _wrapped(LocalStorage.create_root(path) if create else LocalStorage(path), metrics)


def _open_bucket(url: str, metrics: "StorageMetrics | None", credentials: Mapping[str, str] | None) -> StorageBackend:
    # boto3 takes half a second to import, which no other storage should pay for.
    from lab_backup.storage.s3.address import parse  # noqa: PLC0415
    from lab_backup.storage.s3.settings import Credentials  # noqa: PLC0415
    from lab_backup.storage.s3.storage import S3Storage  # noqa: PLC0415

    given = credentials or {}
    address = parse(url, environment=credentials or os.environ)
    connection = address.connection
    if "AWS_ACCESS_KEY_ID" in given:
        keys = Credentials(
            given["AWS_ACCESS_KEY_ID"], given.get("AWS_SECRET_ACCESS_KEY", ""), given.get("AWS_SESSION_TOKEN")
        )
        connection = replace(connection, credentials=keys, profile=None)
    bucket = S3Storage(
        address.bucket,
        address.prefix,
        connection=connection,
        encryption=address.encryption,
        storage_class=address.storage_class,
        lock_mode=address.lock_mode,
        concurrency=address.concurrency,
    )
    storage = _wrapped(bucket, metrics)
    try:
        next(storage.list("config"), None)  # whether there is such a bucket, and we may look into it
    except BaseException:
        storage.close()
        raise
    return storage


def _open_share(
    url: str, metrics: "StorageMetrics | None", credentials: Mapping[str, str] | None, *, create: bool
) -> StorageBackend:
    from lab_backup.storage.smb import SMBStorage  # noqa: PLC0415  as above
    from lab_backup.storage.smb.address import parse  # noqa: PLC0415

    address = parse(url, environment=credentials or os.environ)
    share = SMBStorage(
        address.host,
        address.share,
        address.path,
        port=address.port,
        user=address.user,
        password=address.password,
        domain=address.domain,
        require_signing=address.require_signing,
        require_encryption=address.require_encryption,
        source_address=address.source_address,
        concurrency=address.concurrency,
        create=create,
    )
    return _wrapped(share, metrics)


def _open_export(url: str, metrics: "StorageMetrics | None", *, create: bool) -> StorageBackend:
    from lab_backup.storage.nfs.address import parse  # noqa: PLC0415  as above
    from lab_backup.storage.nfs.storage import NFSStorage  # noqa: PLC0415  as above

    address = parse(url)
    return _wrapped(opened_patiently(lambda: NFSStorage(address, create=create)), metrics)


def _wrapped(storage: StorageBackend, metrics: "StorageMetrics | None") -> StorageBackend:
    if metrics is not None:
        from lab_backup.storage.metered import MeteredStorage  # noqa: PLC0415  as above

        storage = MeteredStorage(storage, metrics)
    return RetryingStorage(storage)


def local_path(url: str) -> Path:
    """Return the folder that `url` names on this machine. Raises UsageError where it names none."""
    if "\0" in url:
        raise UsageError("the repository's address holds a NUL character")
    if not url:
        raise UsageError("the repository's address is empty", hint=f"write {_KNOWN}")
    scheme = _SCHEME.match(url)
    if scheme is None:
        return Path(url)
    name = (scheme[1] or scheme[2]).lower()
    if name != "file":
        raise UsageError(f"{name}: is not a kind of storage that is known", hint=f"write {_KNOWN}")
    return _path_of_file_url(url)


def _path_of_file_url(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError("the repository's address is not a valid URL", hint=f"write {_KNOWN}") from error
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(
            f"the address names the host {parts.hostname!r}, but a file: address is on this machine",
            hint="write three slashes, as in file:///srv/backups",
        )
    if parts.query or parts.fragment:
        raise UsageError("the file: address holds a ? or #", hint="write %3F for ? and %23 for # in the path")
    path = unquote_to_bytes(parts.path)
    if b"\0" in path:
        raise UsageError("the repository's address holds a NUL character")
    if not path.startswith(b"/"):
        raise UsageError("the file: address holds no path", hint=f"write {_KNOWN}")
    return Path(path.decode("utf-8", "surrogateescape"))
