"""Which version of an object counts, in a bucket that locks: the first one that was locked, whatever was put over it since.

Our objects that are locked never change. So a later version, or a delete marker, comes from somebody else, who cannot remove ours: readers pass over both. Where
nothing is locked the newest version counts, as in any bucket.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from botocore import exceptions as boto

from lab_backup.storage.s3.errors import is_unknown

Row = dict[str, Any]
"""A version or delete marker as the server lists it; only the former has a size."""

_PAGE = 1000  # names, in an answer that lists them
_FIRST = 5  # versions among which ours is: an upload whose answer was lost is made again so often at most


class Versions:
    """The versions of a bucket's objects. Raises what boto3 raises. Thread-safe."""

    def __init__(self, client: Any, bucket: str) -> None:
        """Ask by `client`."""
        self._client = client
        self._bucket = bucket
        # Versions that were seen locked, and until when: so long they count, whatever else there is by then.
        self._pinned: dict[str, tuple[Row, datetime]] = {}

    def below(self, start: str) -> Iterator[Row]:
        """Return all versions and delete markers of the names that begin with `start`."""
        for page in self._pages(start):
            yield from page.get("Versions", ())
            yield from page.get("DeleteMarkers", ())

    def _pages(self, start: str) -> Iterator[dict[str, Any]]:
        position: dict[str, str] = {}
        while True:
            page = self._client.list_object_versions(Bucket=self._bucket, Prefix=start, MaxKeys=_PAGE, **position)
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
        return pinned if pinned is not None else self._choose(self.of(key))

    def _pin(self, key: str) -> Row | None:
        row, until = self._pinned.get(key, (None, None))
        # When the lock is over another host may remove the object, and its name may be used anew.
        return row if until is not None and until > datetime.now(UTC) else None

    def listed(self, start: str) -> Iterator[Row]:
        """Return the version that counts of each name that begins with `start`. Only names with several versions cost more than their line."""
        held: dict[str, list[Row]] = {}
        for page in self._pages(start):
            for row in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                held.setdefault(row["Key"], []).append(row)
            # The last name of a page may go on in the next one.
            unfinished = page["NextKeyMarker"] if page["IsTruncated"] else None
            for key in [key for key in held if key != unfinished]:
                rows = held.pop(key)
                alone = len(rows) == 1 and "Size" in rows[0]
                chosen = rows[0] if alone else self._pin(key) or self._choose(_oldest_first(rows))
                if chosen is not None:
                    yield chosen

    def _choose(self, rows: Sequence[Row]) -> Row | None:
        for row in [row for row in rows if "Size" in row][:_FIRST]:
            until = self.retained(row["Key"], row["VersionId"])
            if until is not None:
                self._pinned[row["Key"]] = row, until
                return row
        newest = next((row for row in rows if row.get("IsLatest")), rows[-1] if rows else None)
        return newest if newest is not None and "Size" in newest else None

    def retained(self, key: str, version: str) -> datetime | None:
        """Return the end of a version's retention, if it lies ahead."""
        try:
            answer = self._client.get_object_retention(Bucket=self._bucket, Key=key, VersionId=version)
        except boto.ClientError as error:
            if is_unknown(error):  # none was set, or a delete marker
                return None
            raise
        until: datetime = answer["Retention"]["RetainUntilDate"].astimezone(UTC)
        return until if until > datetime.now(UTC) else None

    def forget(self, key: str) -> None:
        """Pin nothing for a name whose object is gone."""
        self._pinned.pop(key, None)


def _oldest_first(rows: Sequence[Row]) -> list[Row]:
    # Versions of one second are listed the newest first.
    backwards = list(rows)
    backwards.reverse()
    return sorted(backwards, key=lambda row: row["LastModified"])
