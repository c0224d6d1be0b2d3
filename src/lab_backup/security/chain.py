"""The audit log's chain: each entry holds a keyed hash of itself and of the one before, so that none can be changed or taken out unseen.

The key is not in the database: who can only write there cannot make a chain that fits. Entries that are cut off at the end show by the
count that the caller compares.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

START = "0" * 64


def link(key: bytes, previous: str, entry: Mapping[str, object], moment: datetime) -> str:
    """Return the hash of `entry` (plain JSON values) that follows the one whose hash is `previous`."""
    body = msgspec.json.encode(
        [previous, moment.astimezone(UTC).isoformat(timespec="microseconds"), dict(entry)], order="deterministic"
    )
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def first_broken(key: bytes, entries: Iterable[tuple[int, str, Mapping[str, object], datetime]]) -> int | None:
    """Return the number of the first of `entries` (number, hash, entry, moment; oldest first) that does not fit; None where all do."""
    previous = START
    for number, found, entry, moment in entries:
        if not hmac.compare_digest(link(key, previous, entry, moment), found):
            return number
        previous = found
    return None
