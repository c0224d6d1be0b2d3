"""Which version of an object counts, in a bucket that locks: the first one that was ever locked, whatever was put over it since.

Our objects that are locked never change. So a later version, or a delete marker, comes from somebody else, who cannot remove ours: readers pass over both, also when
its lock has ended. Where none was ever locked the newest version counts, as in any bucket.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto

from lab_backup.storage.s3.errors import is_unknown

Row = dict[str, Any]
"""A version or delete marker as the server lists it; only the former has a size."""

_PAGE = 1000  # names, in an answer that lists them
_PINS = 100_000
_BLUR = timedelta(seconds=2)  # the server tells whole seconds, and takes a moment to answer
_FIELDS = ("Key", "VersionId", "Size", "LastModified")
_FIRST = 5  # versions among which ours is: an upload whose answer was lost is made again so often at most


class Versions:
    """The versions of a bucket's objects. Raises what boto3 raises. Thread-safe."""

    def __init__(self, client: Any, bucket: str) -> None:
        """Ask by `client`."""
        self._client = client
        self._bucket = bucket
        # Versions that were seen locked, and until when: so long they count, whatever else there is by then.
        self._pinned: OrderedDict[str, tuple[Row, datetime]] = OrderedDict()
        self._written: OrderedDict[str, str] = (
            OrderedDict()
        )  # the version of each name that we wrote, until it is locked
        self._lock = threading.Lock()
        self._clock: tuple[datetime, float] | None = (
            None  # what the server's clock said, and ours then that only runs on
        )

    def now(self) -> datetime:
        """Return the time by the server's clock, which alone ends locks; by this host's as long as the server was not heard."""
        with self._lock:
            if self._clock is None:
                return datetime.now(UTC)
            said, then = self._clock
            return said + timedelta(seconds=time.monotonic() - then)

    def _hear(self, response: Mapping[str, Any]) -> None:
        """Take the time from the server's answer (RFC 9110, Date)."""
        with suppress(KeyError, TypeError, ValueError):
            said = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
            with self._lock:
                self._clock = said, time.monotonic()

    def below(self, start: str) -> Iterator[Row]:
        """Return all versions and delete markers of the names that begin with `start`."""
        for page in self._pages(start):
            yield from page.get("Versions", ())
            yield from page.get("DeleteMarkers", ())

    def _pages(self, start: str) -> Iterator[dict[str, Any]]:
        position: dict[str, str] = {}
        while True:
            page = self._client.list_object_versions(Bucket=self._bucket, Prefix=start, MaxKeys=_PAGE, **position)
            self._hear(page)
            yield page
            if not page["IsTruncated"]:
                return
            position = {"KeyMarker": page["NextKeyMarker"]}
            if page.get("NextVersionIdMarker"):  # an empty one is refused
                position["VersionIdMarker"] = page["NextVersionIdMarker"]

    def of(self, key: str) -> list[Row]:
        """Return all versions and delete markers of one name, the oldest first."""
        return _oldest_first([row for row in self.below(key) if row["Key"] == key])

    def true(self, key: str) -> Row | None:
        """Return the version that counts, None where there is no such object."""
        pinned = self._pin(key)
        return pinned if pinned is not None else self._choose(self._held(key))

    def _held(self, key: str) -> "_Held":
        held = _Held()
        for page in self._pages(key):
            for row in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                if row["Key"] == key:
                    held.add(row)
            if page["IsTruncated"] and page["NextKeyMarker"] > key:
                break  # what follows only begins like it
        return held

    def _pin(self, key: str) -> Row | None:
        with self._lock:
            row, until = self._pinned.get(key, (None, None))
        # When the lock is over another host may remove the object, and its name may be used anew.
        return row if until is not None and until > self.now() + _BLUR else None

    def listed(self, start: str) -> Iterator[Row]:
        """Return the version that counts of each name that begins with `start`. Only names with several versions cost more than their line."""
        names: dict[str, _Held] = {}
        for page in self._pages(start):
            for row in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                names.setdefault(row["Key"], _Held()).add(row)
            # The last name of a page may go on in the next one.
            unfinished = page["NextKeyMarker"] if page["IsTruncated"] else None
            for key in [key for key in names if key != unfinished]:
                held = names.pop(key)
                chosen = held.alone or self._pin(key) or self._choose(held)
                if chosen is not None:
                    yield chosen

    def _choose(self, held: "_Held") -> Row | None:
        for row in held.oldest_first():
            until = self.retention(row["Key"], row["VersionId"])
            if until is not None:
                with self._lock:
                    self._pinned[row["Key"]] = {name: row[name] for name in _FIELDS}, until
                    while len(self._pinned) > _PINS:
                        self._pinned.popitem(last=False)
                return row
        newest = held.newest
        return newest if newest is not None and "Size" in newest else None

    def retained(self, key: str, version: str) -> datetime | None:
        """Return the end of a version's retention, if it lies ahead."""
        until = self.retention(key, version)
        return until if until is not None and until > self.now() else None

    def retention(self, key: str, version: str) -> datetime | None:
        """Return the end of a version's retention, also if it is over; None where there never was one."""
        try:
            answer = self._client.get_object_retention(Bucket=self._bucket, Key=key, VersionId=version)
            self._hear(answer)
        except boto.ClientError as error:
            if is_unknown(error):  # none was set, or a delete marker
                return None
            raise
        until: datetime = answer["Retention"]["RetainUntilDate"].astimezone(UTC)
        return until

    def wrote(self, key: str, answer: Mapping[str, Any]) -> None:
        """Remember which version the server said that it made of what we wrote: others may put theirs over it before it is locked."""
        if answer.get("VersionId"):
            with self._lock:
                self._written[key] = answer["VersionId"]
                self._written.move_to_end(key)
                while len(self._written) > _PINS:
                    self._written.popitem(last=False)

    def written(self, key: str) -> str | None:
        """Return the version of the name that we wrote last, None where it was not us, or too long ago."""
        with self._lock:
            return self._written.get(key)

    def forget(self, key: str) -> None:
        """Pin nothing for a name whose object is gone."""
        with self._lock:
            self._pinned.pop(key, None)
            self._written.pop(key, None)


class _Held:
    """What is known of a name's versions while they are listed, the newest first: enough to choose, however many there are."""

    def __init__(self) -> None:
        self.newest: Row | None = None
        self._oldest: deque[Row] = deque(maxlen=_FIRST)
        self._count = 0

    def add(self, row: Row) -> None:
        self._count += 1
        if self.newest is None or row.get("IsLatest"):
            self.newest = row
        if "Size" in row:
            self._oldest.append(row)

    @property
    def alone(self) -> Row | None:
        """The only version, where there is one and nothing else."""
        return self._oldest[0] if self._count == 1 and self._oldest else None

    def oldest_first(self) -> list[Row]:
        return _oldest_first(self._oldest)


def _oldest_first(rows: Iterable[Row]) -> list[Row]:
    # Versions of one second are listed the newest first.
    backwards = list(rows)
    backwards.reverse()
    return sorted(backwards, key=lambda row: row["LastModified"])
