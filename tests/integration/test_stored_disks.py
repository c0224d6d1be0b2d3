"""Stored disks as things to read from and to compare: what is read is what was written, and differences are all that differs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_backup.extent import total
from lab_backup.repository.backups import Backups
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_disk import StoredDisk
from lab_backup.repository.tree_difference import differences
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up, new_repository

CHUNKS = 150  # more than two leaves


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Return a repository in memory."""
    with new_repository(MemoryStorage(), tmp_path_factory.mktemp("cache")) as opened:
        yield opened


def content(chunks: dict[int, int], end: int) -> bytes:
    """Return a disk of zeroes with some chunks that are not, of `end` bytes."""
    data = bytearray(CHUNKS * CHUNK)
    for number, value in chunks.items():
        data[number * CHUNK : (number + 1) * CHUNK] = bytes([value]) * CHUNK
    return bytes(data[:end])


def stored(repository: Repository, data: bytes) -> StoredDisk:
    """Back up a disk and return a look at it."""
    manifest = Backups(repository).find(back_up(repository, data).backup).manifest
    return StoredDisk(Reader(repository), manifest.disks[0])


disks = st.dictionaries(st.integers(0, CHUNKS - 1), st.integers(0, 3), max_size=8)
ends = st.integers((CHUNKS - 1) * CHUNK + 1, CHUNKS * CHUNK)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=disks, end=ends, places=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5))
def test_any_range(repository: Repository, chunks: dict[int, int], end: int, places: list[tuple[float, float]]) -> None:
    """Any range of a stored disk reads as it was; its extents cover it, and hold zeroes where they say so."""
    data = content(chunks, end)
    disk = stored(repository, data)
    for one, other in places:
        start, stop = sorted((int(one * end), int(other * end)))
        buffer = bytearray(b"\xee" * (stop - start))
        disk.read_into(start, memoryview(buffer))
        assert buffer == data[start:stop]
    extents = list(disk.extents())
    assert total(extents) == disk.size == end
    assert all(not data[extent.offset : extent.end].strip(b"\0") for extent in extents if extent.zero)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, CHUNK + 1)])
def test_beyond_the_end(repository: Repository, offset: int, length: int) -> None:
    """A range that is not on the disk is refused."""
    disk = stored(repository, b"x" * CHUNK)
    with pytest.raises(ValueError, match="is not on a disk"):
        disk.read_into(offset, memoryview(bytearray(length)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=disks, after=disks, end=ends)
def test_differences(repository: Repository, before: dict[int, int], after: dict[int, int], end: int) -> None:
    """Exactly the chunks that differ are named, with their ids, or as zeroes; nothing is named twice."""
    old, new = content(before, end), content(after, end)
    reader = Reader(repository)
    trees = [reader.tree(stored(repository, data)._entry.tree) for data in (new, old)]
    named: dict[int, bytes | None] = {}
    for found in differences(*trees):
        if found.final:
            for at in range(found.offset // CHUNK, -(-(found.offset + found.length) // CHUNK)):
                assert at not in named
                named[at] = found.id
    pieces = range(-(-end // CHUNK))
    differing = {at for at in pieces if old[at * CHUNK : (at + 1) * CHUNK] != new[at * CHUNK : (at + 1) * CHUNK]}
    assert differing <= set(named)
    for at, identity in named.items():
        chunk = new[at * CHUNK : (at + 1) * CHUNK]
        assert identity == (repository.chunk_id(chunk) if chunk.strip(b"\0") else None)
    assert {at for at in named if at not in differing} <= {at for at in pieces if named.get(at) is None}


def test_equal_and_incomparable_trees(repository: Repository, tmp_path: Path) -> None:
    """Equal disks do not differ; a disk of another size differs everywhere that it holds data."""
    del tmp_path
    reader = Reader(repository)
    one = reader.tree(stored(repository, content({1: 1, 140: 2}, CHUNKS * CHUNK))._entry.tree)
    short = reader.tree(stored(repository, content({1: 1}, (CHUNKS - 1) * CHUNK + 5))._entry.tree)
    assert list(differences(one, one)) == []
    assert {found.offset // CHUNK for found in differences(one, short) if found.level is None} == {1, 140}
    assert {found.offset // CHUNK for found in differences(one, None) if found.level is None} == {1, 140}
