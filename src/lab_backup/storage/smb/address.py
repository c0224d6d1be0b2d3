"""Addresses of shares: `smb://[domain;]user@host[:port]/share/path?…` (the form of draft-crhertel-smb-url)."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from lab_backup.errors import AccessDeniedError, UsageError

PASSWORD = "LAB_BACKUP_SMB_PASSWORD"  # noqa: S105  the name of a variable
"""Environment variable: the password of the share's user."""
PASSWORD_FILE = "LAB_BACKUP_SMB_PASSWORD_FILE"  # noqa: S105  the name of a variable
"""Environment variable: a file, closed to other users, whose first line is the password."""

DEFAULT_PORT = 445
KNOWN = ("encryption", "signing", "source-address", "concurrency")
_EXAMPLE = "write smb://user@host/share/path"


@dataclass(frozen=True, slots=True)
class SMBAddress:
    """What an address says, and the password that belongs to it. `repr` shows no secret."""

    host: str
    port: int
    share: str
    path: str
    user: str | None
    domain: str | None
    password: str | None = field(repr=False)
    require_signing: bool = True
    require_encryption: bool = True
    source_address: str | None = None
    concurrency: int = 4


def parse(url: str, *, environment: Mapping[str, str] = os.environ) -> SMBAddress:
    """Return what the address names. Raises UsageError; AccessDeniedError for a password file that is open to others."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise UsageError("the address of the share is not a valid URL", hint=_EXAMPLE) from error
    if parts.password is not None:
        raise UsageError(
            "the address of the share holds a password, which others can see",
            hint=f"leave it out, change it, and put the new one into {PASSWORD} or {PASSWORD_FILE}",
        )
    share, _, path = unquote(parts.path).strip("/").partition("/")
    if not parts.hostname or not share:
        raise UsageError("the address of the share names no host or no share", hint=_EXAMPLE)
    domain, _, user = unquote(parts.username or "").rpartition(";")
    values = _values(parts.query)
    return SMBAddress(
        host=parts.hostname,
        port=port,
        share=share,
        path=path,
        user=user or None,
        domain=domain or None,
        password=_password(environment) if user else None,
        require_signing=_flag(values, "signing"),
        require_encryption=_flag(values, "encryption"),
        source_address=values.get("source-address"),
        concurrency=_count(values.get("concurrency", "4")),
    )


def _values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in KNOWN or name in values or not value:
            raise UsageError(
                f"{name!r} is no setting of a share, or it is there twice or empty", hint=f"known: {', '.join(KNOWN)}"
            )
        values[name] = value
    return values


def _flag(values: Mapping[str, str], name: str) -> bool:
    value = values.get(name, "required")
    if value not in {"required", "off"}:
        raise UsageError(f"{name}={value} is not known", hint=f"write {name}=required or {name}=off")
    return value == "required"


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UsageError(f"concurrency={text} is not known", hint="write a number from 1 to 64")
    return int(text)


def _password(environment: Mapping[str, str]) -> str:
    if given := environment.get(PASSWORD):
        return given
    named = environment.get(PASSWORD_FILE)
    if not named:
        raise UsageError("the share's user needs a password", hint=f"put it into {PASSWORD} or {PASSWORD_FILE}")
    try:
        with Path(named).open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise AccessDeniedError(f"{named} is open to other users", hint=f"close it: chmod 600 {named}")
            password = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {named} cannot be read") from error
    if not password:
        raise UsageError(f"the first line of {named} is empty")
    return password
