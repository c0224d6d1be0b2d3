"""Where damaged blobs are used: on which disk and at which place, in which files of a tree."""

from collections.abc import Container, Iterator
from contextlib import suppress

from lab_backup.path_text import shown
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import DiskEntry, FileEntry, StreamEntry, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.stored_files import paths_within
from lab_backup.repository.stored_stream import Span
from lab_backup.repository.walk import Found, Walk


def damage_places(
    reader: Reader, entry: DiskEntry | FileEntry | StreamEntry | TreeEntry, bad: Container[bytes]
) -> Iterator[tuple[bytes, str]]:
    """Yield each blob of `bad` that an entry uses, and where, to be read after its name: `@offset`, or `:path` of a file in a tree."""
    walk = Walk(reader, every=True)
    for chunk_list in entry.lists:
        found = [place for place in walk.survey(chunk_list, on_damage=lambda *_: None) if place.id in bad]
        files: list[tuple[bytes, str]] = []
        if isinstance(entry, TreeEntry) and chunk_list == entry.contents_stream:
            files = list(_files(reader, entry, [place for place in found if place.level is None]))
        named = {identity for identity, _ in files}
        yield from files
        yield from ((place.id, f"@{place.offset}") for place in found if place.id not in named)


def _files(reader: Reader, entry: TreeEntry, chunks: list[Found]) -> Iterator[tuple[bytes, str]]:
    """Name the files that use these chunks of a tree's contents; nothing where the catalogue is damaged too."""
    spans = [Span(chunk.offset, chunk.offset + chunk.length) for chunk in chunks]
    with suppress(DamagedError):
        for number, path in paths_within(reader, entry, spans):
            yield chunks[number].id, f":{shown(path)}"
