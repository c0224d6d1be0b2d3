"""From the address that a user writes to the store behind it."""

import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from lab_backup.errors import UsageError
from lab_backup.storage.base import StorageBackend
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.retry import RetryingStorage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(file):(?=/)", re.IGNORECASE)
_KNOWN = "a path such as /srv/backups, or file:///srv/backups"


def open_storage(url: str, *, create: bool = False) -> StorageBackend:
    """Open the store at `url`: a path, absolute or relative to the working directory, or a `file:` URL (RFC 8089).

    With `create`, make its folder where there is none; the folder above must exist. A store that holds something
    already is opened as it is. Passing failures (a file server that restarts) are waited out. Raises UsageError for an address that is none, StorageNotFoundError, StorageAccessError.
    """
    path = local_path(url)
    return RetryingStorage(LocalStorage.create_root(path) if create else LocalStorage(path))


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
