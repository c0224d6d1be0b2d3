"""Marks: what changes about a backup after its manifest was published. Deleted, protected, archived, tags, verified.

A mark is a sealed object `marks/<backup>/<sequence>-<random>` that is never changed. Of several marks of one kind, the one with the highest sequence holds
(the greater random part, where two writers chose the same number at once). A new mark is durable before the older ones of its kind go.
"""

import secrets
from datetime import UTC, datetime
from typing import Literal

import msgspec

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.untrusted_json import parse

PREFIX = "marks"
MarkKind = Literal["deleted", "protected", "archived", "tags", "verified"]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a verification: how deep it went, and whether all was well."""

    time: str
    level: Literal["structure", "sample", "full"]
    ok: bool
    sample: float | None = None


MarkValue = bool | list[str] | Verification


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """One statement about one backup. `value` is a truth, a list of tags, or a verification."""

    backup: str
    kind: MarkKind
    value: MarkValue
    time: str
    by: str = ""
    reason: str = ""  # why, where it was not a person who said so


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that holds about a backup now. `deleted` is the storage's time of the mark, None if it is not deleted."""

    deleted: datetime | None = None
    protected: bool = False
    protected_because: str = ""
    archived: bool = False
    tags: tuple[str, ...] = ()
    verified: Verification | None = None


class StoredMark(msgspec.Struct, frozen=True, kw_only=True):
    """A mark with its object's path, and when the storage got it."""

    path: str
    mark: Mark
    modified: datetime


def new_path(backup_id: str, existing: list[StoredMark]) -> str:
    """Return the path for a mark that overrules all `existing` ones."""
    last = max((_sequence(stored.path) for stored in existing), default=0)
    return f"{PREFIX}/{backup_id}/{last + 1:08x}-{secrets.token_hex(8)}"


def _sequence(path: str) -> int:
    try:
        return int(path.rsplit("/", 1)[1].split("-", maxsplit=1)[0], 16)
    except ValueError:
        return 0


def decode(payload: bytes, path: str) -> Mark:
    """Return the mark in `payload`. Raises DamagedError."""
    mark = parse(payload, Mark, path)
    if path.split("/")[1] != mark.backup:
        raise DamagedError(f"{path} speaks of another backup")
    return mark


def keeps(mark: Mark) -> bool:
    """Whether the mark keeps its backup: it protects it, or takes its deletion back."""
    return mark.value is (mark.kind != "deleted") if mark.kind in {"deleted", "protected", "archived"} else False


def fold(stored: list[StoredMark]) -> State:
    """Return what holds after all these marks of one backup."""
    latest: dict[str, StoredMark] = {}
    for item in sorted(stored, key=lambda item: item.path.rsplit("/", 1)[1]):
        latest[item.mark.kind] = item

    def truth(kind: str) -> bool:
        return kind in latest and latest[kind].mark.value is True

    tags = latest["tags"].mark.value if "tags" in latest else ()
    verified = latest["verified"].mark.value if "verified" in latest else None
    return State(
        deleted=latest["deleted"].modified.astimezone(UTC) if truth("deleted") else None,
        protected=truth("protected"),
        protected_because=latest["protected"].mark.reason if truth("protected") else "",
        archived=truth("archived"),
        tags=tuple(tags) if isinstance(tags, list) else (),
        verified=verified if isinstance(verified, Verification) else None,
    )
