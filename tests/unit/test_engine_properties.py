"""The whole engine on a store in memory: whatever is backed up, in whatever steps, comes back bit for bit."""

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.extent import Extent
from lab_backup.operations.catalogue import find_backup, list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete
from lab_backup.operations.repositories import add_key
from lab_backup.operations.verify import verify
from lab_backup.repository import envelope as envelope_module
from lab_backup.repository import keys as keys_module
from lab_backup.repository import pack as pack_module
from lab_backup.repository.pack import PackKind
from lab_backup.repository.reader import MAX_FILE, Reader
from lab_backup.repository.repository import Repository
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB, MiB
from support.engine import CHUNK, MemoryDisk, back_up, new_repository, reopen, restored

RepositoryFactory = Callable[..., Repository]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RepositoryFactory]:
    """Return a function that makes a repository on a new store in memory; all are closed at the end."""
    made: list[Repository] = []

    def factory(**options: str | int) -> Repository:
        made.append(new_repository(MemoryStorage(), tmp_path_factory.mktemp("cache"), **options))  # type: ignore[arg-type] # mypy cannot split the options
        return made[-1]

    yield factory
    for repository in made:
        repository.close()


def content(source: random.Random, length: int, kind: int) -> bytes:
    """Return `length` bytes: zeroes, noise, text that compresses, or a pattern that repeats every few chunks."""
    if kind == 0:
        return bytes(length)
    if kind == 1:
        return source.randbytes(length)
    if kind == 2:
        return (b"%d bottles of beer, " % source.randrange(5) * (length // 10 + 1))[:length]
    return (bytes(range(256)) * (length // 256 + 1))[:length]


@st.composite
def sizes(draw: st.DrawFn, chunk: int) -> int:
    """Return a disk's size: tiny, around the borders of chunks and leaves, or odd."""
    whole = draw(st.sampled_from([0, 1, 2, 3, 63, 64, 65, 130]))
    if whole * chunk > 2 * MiB:
        whole = draw(st.integers(0, 3))
    return max(0, whole * chunk + draw(st.sampled_from([0, 0, 1, -1, 511, 512, -512, 7777])))


def disk_of(choose: st.DataObject, source: random.Random, size: int) -> tuple[bytearray, list[Extent]]:
    """Return a disk's content, and extents that describe it: zero where it is zero, sometimes only data."""
    data = bytearray()
    extents: list[Extent] = []
    while len(data) < size:
        length = min(size - len(data), choose.draw(st.sampled_from([1, 500, 4096, CHUNK, 3 * CHUNK, 70 * CHUNK, MiB])))
        kind = choose.draw(st.integers(0, 3))
        extents.append(Extent(len(data), length, kind == 0 and choose.draw(st.booleans())))
        data += content(source, length, kind)
    return data, extents


def change(choose: st.DataObject, source: random.Random, data: bytearray) -> list[Extent]:
    """Change `data` in some places; return sorted extents that hold all changes and more."""
    size = len(data)
    changed: dict[int, Extent] = {}
    at = 0
    for _ in range(choose.draw(st.integers(0, 5))):
        start = at + choose.draw(st.integers(0, max(0, size - at)))
        length = min(size - start, choose.draw(st.sampled_from([0, 1, 512, 4096, CHUNK, 5 * CHUNK])))
        kind = choose.draw(st.integers(-1, 3))  # -1: named as changed, but the same as before
        if kind >= 0:
            data[start : start + length] = content(source, length, kind)
        changed[start] = Extent(start, length, kind == 0 and choose.draw(st.booleans()))
        at = start + length
    return list(changed.values())


CASES = [
    (16 * KiB, "zstd:1"),
    (16 * KiB, "none"),
    (32 * KiB, "gzip:1"),
    (128 * KiB, "gzip"),
    (MiB, "zstd:1"),
]


@pytest.mark.parametrize(("chunk_size", "compression"), CASES)
def test_full_and_increments(make: RepositoryFactory, chunk_size: int, compression: str) -> None:
    """Any disk, then any increments over it: each backup restores to what the disk was at its time."""
    repository = make(chunk_size=chunk_size, compression=compression)
    names = itertools.count()

    @settings(max_examples=6)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        source = random.Random(data.draw(st.integers(0, 5), label="seed"))
        name = f"guest-{next(names)}"
        disk, extents = disk_of(data, source, data.draw(sizes(chunk_size)))
        history = [(back_up(repository, MemoryDisk(bytes(disk), extents), name=name).backup, bytes(disk))]
        for _ in range(data.draw(st.integers(0, 3), label="increments")):
            changes = change(data, source, disk)
            summary = back_up(repository, bytes(disk), changes=changes, name=name)
            assert summary.kind == "incremental"
            history.append((summary.backup, bytes(disk)))
        for backup_id, expected in history:
            assert restored(repository, backup_id) == expected

    run()
    assert verify(repository, read_data=True).damage == ()


def data_packs(repository: Repository) -> list[str]:
    """Return the paths of all packs with chunks."""
    return sorted(info.path for _, info in repository.cache.packs() if info.kind == PackKind.DATA)


def test_unchanged_disk_stores_nothing(make: RepositoryFactory) -> None:
    """Neither an increment without changes, nor one whose changes are none, nor a second full backup writes a pack."""
    repository = make()
    disk = random.Random(1).randbytes(3 * MiB + 5)
    first = back_up(repository, disk)
    before = sorted(info.path for info in repository.storage.list("packs"))
    for changes in ([], [Extent(0, len(disk))], [Extent(100, 5), Extent(MiB, 4096)], None):
        again = back_up(repository, disk, changes=changes)
        assert again.disks[0].root == first.disks[0].root
        assert again.bytes_stored == 0
    assert sorted(info.path for info in repository.storage.list("packs")) == before


def test_equal_content_is_stored_once(make: RepositoryFactory) -> None:
    """Two disks of one backup, and the disk of another source, share chunks and the nodes above them."""
    repository = make(compression="none")
    disk = random.Random(2).randbytes(2 * MiB)
    back_up(repository, {"vda": disk, "vdb": disk}, name="one")
    stored = sum(repository.storage.stat(path).size for path in data_packs(repository))
    assert stored < len(disk) * 1.02
    before = data_packs(repository)
    other = back_up(repository, disk + b"tail", name="other")
    assert sum(repository.storage.stat(path).size for path in set(data_packs(repository)) - set(before)) < 300
    assert restored(repository, other.backup) == disk + b"tail"


class PatternDisk(MemoryDisk):
    """A large disk that repeats one block, with some places overwritten."""

    def __init__(self, block: bytes, count: int, changes: dict[int, bytes]) -> None:
        """Repeat `block` `count` times, then overwrite what `changes` says, offset to bytes within a block."""
        super().__init__(b"")
        self.block, self.changes = block, changes
        self.size = len(block) * count
        self._extents = [Extent(0, self.size)]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, which begins and ends at a block."""
        size = len(self.block)
        for at in range(0, len(buffer), size):
            buffer[at : at + size] = self.block
            for place, data in self.changes.items():
                if offset + at <= place < offset + at + size:
                    buffer[place - offset : place - offset + len(data)] = data


def test_scattered_writes(make: RepositoryFactory) -> None:
    """Scattered 4 KiB writes store the chunks they touch and at most 8 % on top for the chunk list.

    The worst there is: each in another leaf, and all leaves full. Every 8th of the 1,000 that the figure is about.
    """
    chunk = 128 * KiB
    repository = make(chunk_size=chunk, compression="zstd:3")
    source = random.Random(3)
    block = source.randbytes(chunk // 2) + bytes(chunk // 2)  # compresses to half
    leaves = 125
    back_up(repository, PatternDisk(block, 64 * leaves, {}))
    before = {info.path: info.size for info in repository.storage.list("packs")}
    changes = {(leaf * 64 + source.randrange(64)) * chunk + 8192: source.randbytes(4096) for leaf in range(leaves)}
    changed = PatternDisk(block, 64 * leaves, changes)
    summary = back_up(repository, changed, changes=[Extent(at, 4096) for at in sorted(changes)])
    assert summary.bytes_read == leaves * chunk
    new = [info for _, info in repository.cache.packs() if info.path not in before]
    data = sum(info.size for info in new if info.kind == PackKind.DATA)
    tree = sum(info.size for info in new if info.kind == PackKind.TREE)
    assert data < leaves * (chunk / 2 + 4096) * 1.01
    assert tree < 0.08 * data
    assert summary.bytes_stored < data + tree + leaves * 150 + 4096, "the index takes its 45 bytes a blob"


def test_three_levels(make: RepositoryFactory) -> None:
    """A disk whose list has three levels, mostly zero, restores; holes stay holes."""
    repository = make()
    size = 70 * MiB + 3
    source = random.Random(4)
    disk = bytearray(size)
    extents = [Extent(0, size, zero=True)]
    places = [5, MiB - 7, 64 * MiB - 3, 64 * MiB + 9, size - 1]
    for place in places:
        disk[place : place + 5] = source.randbytes(min(5, size - place))
    summary = back_up(repository, MemoryDisk(bytes(disk), [Extent(0, size)]))
    assert find_backup(repository, summary.backup).manifest.disks[0].tree.levels == 3
    assert restored(repository, summary.backup) == disk
    entry = find_backup(repository, summary.backup).manifest.disks[0]
    assert sum(extent.length for extent in Reader(repository).allocated(entry)) <= 8 * CHUNK
    empty = back_up(repository, MemoryDisk(bytes(size), extents), changes=extents)
    assert empty.disks[0].root is None
    assert empty.bytes_read == 0
    assert restored(repository, empty.backup) == bytes(size)


def test_reading_a_range(make: RepositoryFactory) -> None:
    """Reading any range gives the chunks that touch it, in order, and they are what the disk holds there."""
    repository = make()
    source = random.Random(5)
    disk = b"".join(content(source, 7 * CHUNK // 3, at % 4) for at in range(60)) + b"end"
    entry = back_up(repository, disk).disks[0]
    reader = Reader(repository)
    border = st.one_of(st.integers(0, len(disk) + 10), st.integers(0, 140).map(lambda at: at * CHUNK))

    @settings(max_examples=30)
    @given(borders=st.tuples(border, border))
    def run(borders: tuple[int, int]) -> None:
        start, end = sorted(borders)
        found = bytearray(len(disk))
        last = -1
        for piece in reader.read_disk(entry, start, end):
            assert last < piece.offset < end
            assert piece.offset + len(piece.data) > start
            last = piece.offset
            found[piece.offset : piece.offset + len(piece.data)] = piece.data
        assert found[start:end] == disk[start:end]

    run()


def test_writers_side_by_side(make: RepositoryFactory, tmp_path: Path) -> None:
    """Two writers with indexes of their own store the same content at once: both backups are whole."""
    repository = make()
    other = reopen(repository, tmp_path)
    disk = random.Random(6).randbytes(4 * MiB)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(back_up, each, disk, name=str(at)) for at, each in enumerate([repository, other])]
        ids = [future.result().backup for future in done]
    repository.synchronise()
    assert [restored(repository, backup_id) == disk for backup_id in ids] == [True, True]
    assert verify(repository, read_data=True).damage == ()


def test_files(make: RepositoryFactory) -> None:
    """Configuration files of any size come back, empty ones and zeroes too."""
    repository = make()
    files = {
        "domain.xml": b"<domain/>",
        "nvram": bytes(64 * KiB) + b"x",
        "empty": b"",
        "zero": bytes(5),
        "tpm.tar": random.Random(7).randbytes(40_000),
    }
    backup = find_backup(repository, back_up(repository, b"disk", files=files).backup)
    assert {entry.name: Reader(repository).read_file(entry) for entry in backup.manifest.files} == files


def test_file_that_no_reader_would_take(make: RepositoryFactory) -> None:
    """A configuration file too large to be read back is refused, and nothing is published."""
    repository = make()
    with pytest.raises(UsageError):
        back_up(repository, b"disk", files={"nvram": bytes(MAX_FILE + 1)})
    assert list_backups(repository).backups == []


class Recorder:
    """Every (key, nonce) pair that anything was encrypted with."""

    def __init__(self) -> None:
        """Begin with none."""
        self.pairs: list[tuple[bytes, bytes]] = []

    def cipher(self, key: bytes) -> "RecordingCipher":
        """Stand in for the class AESGCM."""
        return RecordingCipher(self, key)


class RecordingCipher:
    """AES-GCM that remembers what it encrypted with."""

    def __init__(self, recorder: Recorder, key: bytes) -> None:
        """Encrypt under `key`."""
        self._recorder, self._key, self._inner = recorder, bytes(key), AESGCM(key)
        self.decrypt = self._inner.decrypt

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        """Encrypt and remember."""
        self._recorder.pairs.append((self._key, bytes(nonce)))
        return self._inner.encrypt(nonce, data, associated)

    def encrypt_into(self, nonce: bytes, data: bytes, associated: bytes, target: memoryview) -> int:
        """Encrypt and remember."""
        self._recorder.pairs.append((self._key, bytes(nonce)))
        return self._inner.encrypt_into(nonce, data, associated, target)


def test_no_key_meets_a_nonce_twice(make: RepositoryFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many backups by two writers, a collection that repacks, and new passphrases: no pair of key and nonce repeats."""
    recorder = Recorder()
    for module in (pack_module, envelope_module, keys_module):
        monkeypatch.setattr(module, "AESGCM", recorder.cipher)
    monkeypatch.setattr(keys_module, "MEMORY_KIB", 32)
    repository = make(passphrase="one")
    other = reopen(repository, tmp_path)
    source = random.Random(8)
    keep = source.randbytes(10 * CHUNK)
    summaries = [
        back_up(each, keep + source.randbytes(60 * CHUNK), name=name) for name in "ab" for each in (repository, other)
    ]
    kept = back_up(repository, keep, name="c")
    add_key(repository, "two", label="second")
    for summary in summaries:
        delete(repository, summary.backup, now=True)
    assert collect(repository, exclusive=True, grace=0).packs_repacked
    assert restored(repository, kept.backup) == keep
    assert len(recorder.pairs) > 300
    assert len(set(recorder.pairs)) == len(recorder.pairs)


def test_nothing_shows_in_the_storage(make: RepositoryFactory) -> None:
    """No object holds a piece of a disk, a name, or a chunk's id."""
    repository = make(compression="none")
    disk = random.Random(9).randbytes(5 * CHUNK)
    back_up(repository, disk, name="secret-name", files={"domain.xml": b"<secret-xml/>" * 10})
    everything = b"".join(repository.storage.read(info.path) for info in repository.storage.list())
    for secret in (disk[100:132], b"secret-name", b"secret-xml", repository.chunk_id(disk[:CHUNK])):
        assert secret not in everything
        assert secret.hex().encode() not in everything
