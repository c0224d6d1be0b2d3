"""Streams in a repository: whole again, in parts too, stored once, and refused when a manifest lies about them."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_backup.operations.verify import verify
from lab_backup.repository import manifest as manifests
from lab_backup.repository.create import create_repository
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import VERSION, Manifest, SourceInfo, StreamEntry, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.repository.stored_stream import Span, StoredStream
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB, MiB
from support.engine import CHUNK, back_up
from support.stored_trees import File, MemoryTree, contents_of, store_tree


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository in memory, with the smallest chunks."""
    with new_repository(tmp_path) as opened:
        yield opened


def new_repository(directory: Path) -> Repository:
    """Return an empty repository."""
    storage = MemoryStorage()
    create_repository(storage, passphrase=None, chunk_size=CHUNK, compression="none")
    return open_repository(storage, passphrase=None, cache_directory=directory / "cache")


def stored(repository: Repository, data: bytes) -> tuple[StreamEntry, int]:
    """Store a stream; return its entry and how many bytes that took."""
    with BackupSession(repository, new_backup_id()) as session:
        entry, counts = session.write_stream("layer", io.BytesIO(data))
        session.publish(manifest(repository, session.backup_id, entry))
    return entry, counts.bytes_stored


def manifest(repository: Repository, backup_id: str, *streams: StreamEntry) -> Manifest:
    """Return the manifest of a backup of streams."""
    return Manifest(
        version=VERSION,
        backup=backup_id,
        repository=repository.config.id,
        time="2026-01-01T00:00:00Z",
        source=SourceInfo(kind="container", id="id", name="web"),
        kind="full",
        consistency="fuzzy",
        streams=streams,
    )


def content(repository: Repository, entry: StreamEntry, *spans: Span) -> bytes:
    """Return what is read of a stream."""
    pieces = StoredStream(Reader(repository), entry.stream).read(spans or None)
    return b"".join(bytes(piece.data) for piece in pieces)


DATA = random.Random(11).randbytes(3 * MiB) + bytes(200 * KiB) + b"text " * 50_000


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_part_of_any_stream(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Streams of any length, of nothing too, come back; so do any parts of them."""
    size = data.draw(st.sampled_from([0, 1, CHUNK // 4, CHUNK, 300_000]) | st.integers(0, len(DATA)))
    start = data.draw(st.integers(0, len(DATA) - size))
    with new_repository(tmp_path_factory.mktemp("stream")) as repository:
        whole = DATA[start : start + size]
        entry, _ = stored(repository, whole)
        assert content(repository, entry) == whole
        borders = sorted(data.draw(st.lists(st.integers(0, size), min_size=6, max_size=6)))
        spans = [Span(*borders[at : at + 2]) for at in (0, 2, 4)]
        assert content(repository, entry, *spans) == b"".join(whole[begin:end] for begin, end in spans)
        assert verify(repository, read_data=True).damage == ()


def test_the_same_stream_twice_costs_nothing(repository: Repository) -> None:
    """An equal stream is the same chunks and nodes; one with an insertion adds its surroundings; one of zeroes a chunk."""
    first, taken = stored(repository, DATA)
    assert taken > 3 * MiB
    again, taken = stored(repository, DATA)
    assert (again.root, taken) == (first.root, 0)
    longer = DATA[:1000] + b"inserted" + DATA[1000:]
    changed, taken = stored(repository, longer)
    assert 0 < taken < 6 * 4 * CHUNK
    assert content(repository, changed) == longer
    zeroes, taken = stored(repository, bytes(10 * MiB))
    assert taken < 8 * CHUNK
    assert content(repository, zeroes) == bytes(10 * MiB)


def test_a_source_that_gives_little_at_a_time(repository: Repository) -> None:
    """How much each call returns changes nothing."""

    class Slow(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # a caller of ours gives no other
            return super().readinto(buffer[: 1 + len(buffer) % 5003])

    first, _ = stored(repository, DATA)
    with BackupSession(repository, new_backup_id()) as session:
        entry, counts = session.write_stream("layer", Slow(DATA))
    assert (entry.root, counts.bytes_stored, counts.bytes_read) == (first.root, 0, len(DATA))


def test_a_source_that_fails(repository: Repository) -> None:
    """What reading raises reaches the caller, and the session goes on."""

    class Broken(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # a caller of ours gives no other
            if self.tell() > MiB:
                raise ConnectionResetError
            return super().readinto(buffer)

    with BackupSession(repository, new_backup_id()) as session:
        with pytest.raises(ConnectionResetError):
            session.write_stream("layer", Broken(DATA))
        entry, _ = session.write_stream("layer", io.BytesIO(DATA))
        session.publish(manifest(repository, session.backup_id, entry))
    assert content(repository, entry) == DATA


def test_manifests_that_lie(repository: Repository) -> None:
    """A stream of another length, cut otherwise than said, or under a version that knows no streams: nobody reads it."""
    entry, _ = stored(repository, DATA)
    lies = [
        msgspec.structs.replace(entry, size=entry.size + 1),
        msgspec.structs.replace(entry, size=entry.size - 1),
        msgspec.structs.replace(entry, chunks=msgspec.structs.replace(entry.chunks, maximum=CHUNK, average=CHUNK)),
        msgspec.structs.replace(entry, root="00" * 32),
    ]
    for lie in lies:
        with pytest.raises(DamagedError):
            content(repository, lie)
    backup_id = new_backup_id()
    sound = msgspec.structs.replace(manifest(repository, backup_id, entry), version=2)
    assert manifests.decode(manifests.encode(sound), backup_id, repository.config.id) == sound
    forged = [
        msgspec.structs.replace(sound, version=1),
        msgspec.structs.replace(sound, streams=(entry, entry)),
        msgspec.structs.replace(sound, streams=(msgspec.structs.replace(entry, root=None),)),
        msgspec.structs.replace(sound, streams=(msgspec.structs.replace(entry, size=0),)),
        msgspec.structs.replace(
            sound,
            streams=(msgspec.structs.replace(entry, chunks=msgspec.structs.replace(entry.chunks, minimum=10 * CHUNK)),),
        ),
    ]
    for lying in forged:
        with pytest.raises(DamagedError):
            manifests.decode(manifests.encode(lying), backup_id, repository.config.id)


def test_trees_that_lie(repository: Repository) -> None:
    """A tree with another catalogue, contents of another length, or a disk's root is refused, and nothing of it is given as a file."""
    _, written = store_tree(repository, MemoryTree({b"a": File([DATA[:100_000]]), b"b": File([b"b"])}))
    _, other = store_tree(repository, MemoryTree({b"a": File([DATA[:50_000]])}))
    back_up(repository, DATA[: 4 * CHUNK])
    entry = written.entry

    def refused(lie: TreeEntry) -> None:
        with pytest.raises(DamagedError):
            contents_of(StoredFileTree(Reader(repository), lie))

    refused(msgspec.structs.replace(entry, catalogue=other.entry.catalogue))
    refused(msgspec.structs.replace(entry, contents=other.entry.contents))
    refused(msgspec.structs.replace(entry, catalogue=entry.contents, contents=entry.contents))
    refused(
        msgspec.structs.replace(
            entry, catalogue=msgspec.structs.replace(entry.catalogue, size=entry.catalogue.size + 1)
        )
    )
    refused(
        msgspec.structs.replace(entry, contents=msgspec.structs.replace(entry.contents, size=entry.contents.size - 1))
    )


def test_old_backups_are_written_as_before(repository: Repository) -> None:
    """A backup of disks is one of version 1 to the byte: no field of later versions is in it."""
    summary = back_up(repository, DATA[: 4 * CHUNK])
    payload = manifests.encode(
        manifests.Manifest(
            version=VERSION,
            backup=summary.backup,
            repository=repository.config.id,
            time="2026-01-01T00:00:00Z",
            source=SourceInfo(kind="vm", id="id", name="vm"),
            kind="full",
            consistency="crash",
        )
    )
    assert b"streams" not in payload
    assert b"trees" not in payload
    assert b'"version":1' in payload
