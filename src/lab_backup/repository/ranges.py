"""Which bytes of packs to ask for: neighbours by one request, and none too large."""

from collections.abc import Iterable, Iterator

from lab_backup.repository.cache import Location
from lab_backup.repository.pack import Entry
from lab_backup.units import KiB, MiB

# Two blobs this close together are fetched by one request: reading a little too much is cheaper than asking again.
MAX_GAP = 256 * KiB
MAX_RANGE = 8 * MiB  # one request; with eight in flight and three being checked that is 88 MiB


def ranges(locations: Iterable[Location]) -> Iterator[tuple[int, list[Entry]]]:
    """Group places into requests: (pack, entries in order), close neighbours together, none over 8 MiB unless a single blob is."""
    held: list[Entry] = []
    number = -1
    for location in sorted(locations, key=lambda location: (location.pack, location.entry.offset)):
        entry = location.entry
        if held and (
            location.pack != number
            or entry.offset - (held[-1].offset + held[-1].stored) > MAX_GAP
            or entry.offset + entry.stored - held[0].offset > MAX_RANGE
        ):
            yield number, held
            held = []
        number = location.pack
        held.append(entry)
    if held:
        yield number, held
