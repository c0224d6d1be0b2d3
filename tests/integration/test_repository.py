"""Repositories as a whole: keys, caches, several hosts; and content forged by somebody who has the keys, or only the storage."""

import random
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zstandard

from lab_backup.errors import LabBackupError, NotFoundError, UsageError
from lab_backup.operations.catalogue import find_backup, list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, undelete
from lab_backup.operations.repositories import add_key, list_keys, recovery_sheet, remove_key
from lab_backup.operations.verify import verify
from lab_backup.repository import config as config_module
from lab_backup.repository import index
from lab_backup.repository import keys as keys_module
from lab_backup.repository import manifest as manifests
from lab_backup.repository.codec import Codec
from lab_backup.repository.config import Config
from lab_backup.repository.create import create_repository
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import (
    ChunkCorruptError,
    DamagedError,
    NewerVersionError,
    NotARepositoryError,
    RepositoryExistsError,
    WrongKeyError,
)
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.keys import RepositoryKeys, plain_slot
from lab_backup.repository.manifest import DiskEntry, FileEntry, Manifest, SourceInfo
from lab_backup.repository.pack import ENTRY, TAG, PackBuilder, PackKind
from lab_backup.repository.packer import Packer
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import INDEX, Repository, open_repository
from lab_backup.repository.session import new_backup_id
from lab_backup.repository.tree import FAN_OUT, Child, encode_node
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB, MiB
from support.engine import CHUNK, MemoryDisk, back_up, copy_of, new_repository, reopen, restored
from support.faulty import FaultyStorage
from support.stage import small_packs

DISK = random.Random(1).randbytes(5 * CHUNK + 99)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return a new repository in memory, without encryption: keys are open, everything else is the same."""
    with new_repository(MemoryStorage(), tmp_path / "cache") as made:
        yield made


@pytest.fixture
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new passphrases cost no time to try."""
    monkeypatch.setattr(keys_module, "MEMORY_KIB", 32)
    monkeypatch.setattr(keys_module, "ITERATIONS", 1)


# --- keys ---


@pytest.mark.usefixtures("cheap_keys")
def test_passphrases(tmp_path: Path) -> None:
    """Every added passphrase opens, a removed one no longer does, the last one stays, and the data is never rewritten."""
    storage = MemoryStorage()
    with new_repository(storage, tmp_path, passphrase="first") as repository:
        backup = back_up(repository, DISK).backup
        before = {info.path: info for info in storage.list("packs")}
        second = add_key(repository, "second", label="for the other host")
        assert [key.label for key in list_keys(repository)] == ["first passphrase", "for the other host"]
        first = next(key.id for key in list_keys(repository) if key.id != second.id)
        remove_key(repository, first[:10])
        with pytest.raises(UsageError):
            remove_key(repository, second.id)
        with pytest.raises(NotFoundError):
            remove_key(repository, first)
        with pytest.raises(UsageError):
            add_key(repository, "", label="empty")
        assert {info.path: info for info in storage.list("packs")} == before
    with pytest.raises(WrongKeyError):
        open_repository(storage, passphrase="first", cache_directory=tmp_path)
    with pytest.raises(WrongKeyError):
        open_repository(storage, passphrase=None, cache_directory=tmp_path)
    with open_repository(storage, passphrase="second", cache_directory=tmp_path) as repository:
        assert restored(repository, backup) == DISK


@pytest.mark.usefixtures("cheap_keys")
def test_a_damaged_key_is_not_counted(tmp_path: Path) -> None:
    """A passphrase whose object is damaged does not let the last sound one be removed, and is told from a wrong one."""
    storage = MemoryStorage()
    with new_repository(storage, tmp_path, passphrase="first") as repository:
        second = add_key(repository, "second", label="x")
        path = f"keys/{second.id}"
        storage.upload(path, storage.read(path).replace(b'"x"', b'"y"'))
        sound = next(key.id for key in list_keys(repository) if key.id != second.id)
        with pytest.raises(UsageError):
            remove_key(repository, sound)
    storage.upload(path, storage.read(path).replace(b'"iterations":1', b'"iterations":2'))
    with pytest.raises(DamagedError):
        open_repository(storage, passphrase="second", cache_directory=tmp_path)
    with open_repository(storage, passphrase="first", cache_directory=tmp_path):
        pass


@pytest.mark.usefixtures("cheap_keys")
def test_recovery_key(tmp_path: Path) -> None:
    """The key on the recovery sheet opens the repository as it is typed from paper, also when all key objects are gone."""
    storage = MemoryStorage()
    with new_repository(storage, tmp_path, passphrase="forgotten") as repository:
        backup = back_up(repository, DISK).backup
        sheet = recovery_sheet(repository)
    lines = sheet.splitlines()
    start = next(at for at, line in enumerate(lines) if "LABKEY1-" in line and "starting" not in line)
    typed = " ".join(lines[start : lines.index("", start)])
    for info in list(storage.list("keys")):
        storage.delete(info.path)
    with pytest.raises(WrongKeyError):
        open_repository(storage, passphrase="forgotten", cache_directory=tmp_path)
    for text in (typed, typed.lower(), f"\n{typed}\n"):
        with open_repository(storage, passphrase=text, cache_directory=tmp_path) as repository:
            assert restored(repository, backup) == DISK
    other = RepositoryKeys.generate().recovery_key()
    with pytest.raises(WrongKeyError, match="not that of"):
        open_repository(storage, passphrase=other, cache_directory=tmp_path)


@pytest.mark.usefixtures("cheap_keys")
def test_no_plain_keys_in_an_encrypted_repository(tmp_path: Path) -> None:
    """Who can only write the storage cannot slip in keys of his own, neither beside ours nor by saying that nothing is encrypted."""
    storage = MemoryStorage()
    with new_repository(storage, tmp_path, passphrase="ours") as repository:
        config = repository.config
    his = RepositoryKeys.generate()
    for encryption in ("aes-256-gcm", "none"):
        forged = copy_of(storage)
        slot = plain_slot(his, created="2000-01-01T00:00:00Z")
        forged.upload(f"keys/{slot.id}", msgspec.json.encode(slot))
        fields = {name: getattr(config, name) for name in Config.__struct_fields__} | {"encryption": encryption}
        for path in (config_module.PATH, config_module.COPY):
            forged.upload(path, Config(**fields).sealed(his.metadata).encode())
        with pytest.raises((DamagedError, WrongKeyError)):
            open_repository(forged, passphrase="ours", cache_directory=tmp_path / "other")


def test_slot_that_asks_for_a_terabyte(tmp_path: Path) -> None:
    """A forged key object beside ours costs neither memory nor the access to the repository."""
    storage = MemoryStorage()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "MEMORY_KIB", 32)
        new_repository(storage, tmp_path, passphrase="ours").close()
    ours = next(info.path for info in storage.list("keys"))
    name = "0" * 16
    slot = storage.read(ours).replace(ours.split("/")[1].encode(), name.encode())
    slot = slot.replace(b'"memory_kib":32', b'"memory_kib":1073741824').replace(b'"created":"20', b'"created":"10')
    storage.upload(f"keys/{name}", slot)
    with open_repository(storage, passphrase="ours", cache_directory=tmp_path):
        pass
    with pytest.raises(DamagedError):
        open_repository(storage, passphrase="wrong", cache_directory=tmp_path)


# --- making and opening ---


def test_creation(tmp_path: Path) -> None:
    """A repository is made in an empty place only, and what is there stays as it is."""
    storage = MemoryStorage()
    with pytest.raises(NotARepositoryError):
        open_repository(storage, passphrase=None, cache_directory=tmp_path)
    with pytest.raises(UsageError):
        create_repository(storage, passphrase=None, chunk_size=1000)
    with pytest.raises(UsageError):
        create_repository(storage, passphrase=None, compression="lz4")
    assert list(storage.list()) == []
    storage.upload("photos/cat", b"meow")
    with pytest.raises(UsageError):
        create_repository(storage, passphrase=None)
    storage.delete("photos/cat")
    create_repository(storage, passphrase=None)
    before = sorted(storage.list())
    with pytest.raises(RepositoryExistsError):
        create_repository(storage, passphrase=None)
    assert sorted(storage.list()) == before


def test_shared_ids(tmp_path: Path) -> None:
    """A repository made like another one has the same chunk ids, and no other key in common."""
    first, second = MemoryStorage(), MemoryStorage()
    with new_repository(first, tmp_path / "a") as one:
        create_repository(second, passphrase=None, chunk_size=CHUNK, identity=one.keys.identity)
        with open_repository(second, passphrase=None, cache_directory=tmp_path / "b") as two:
            assert one.chunk_id(DISK) == two.chunk_id(DISK)
            assert one.keys.master != two.keys.master


# --- several hosts, stale and lost caches ---


def test_lost_cache(repository: Repository, tmp_path: Path) -> None:
    """With the local index gone, or that of another repository in its place, everything restores and nothing is stored twice."""
    summary = back_up(repository, DISK)
    folder = next((tmp_path / "cache").iterdir())
    with new_repository(MemoryStorage(), tmp_path / "other") as other:
        back_up(other, DISK)
        other_folder = next((tmp_path / "other").iterdir())
        for number, foreign in enumerate((False, True)):
            cache = tmp_path / f"again-{number}"
            if foreign:
                shutil.copytree(other_folder, cache / folder.name)
            with reopen(repository, cache) as again:
                assert restored(again, summary.backup) == DISK
                assert back_up(again, DISK).bytes_stored == 0


class Meeting(MemoryDisk):
    """A disk whose first read waits until the other writer reads too: by then both know what is stored."""

    def __init__(self, data: bytes, barrier: threading.Barrier) -> None:
        """Present `data`."""
        super().__init__(data, readers=1)
        self._barrier: threading.Barrier | None = barrier

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Wait once, then read."""
        barrier, self._barrier = self._barrier, None
        if barrier is not None:
            barrier.wait(30)
        super().read_into(offset, buffer)


def twice_stored(repository: Repository, tmp_path: Path, seed: int) -> tuple[bytes, list[str]]:
    """Store one chunk in two packs, as two writers do that start together; return it, and the two backups."""
    source = random.Random(seed)
    shared = source.randbytes(CHUNK)
    barrier = threading.Barrier(2)
    disks = [Meeting(shared + source.randbytes(20 * CHUNK), barrier) for _ in range(2)]
    with reopen(repository, tmp_path / f"second-{seed}") as second, ThreadPoolExecutor(2) as pool:
        done = [
            pool.submit(back_up, each, disk, name=f"{seed}-{at}")
            for at, (each, disk) in enumerate(zip((repository, second), disks, strict=True))
        ]
        ids = [future.result().backup for future in done]
    repository.synchronise()
    assert len(repository.cache.places(repository.chunk_id(shared))) == 2
    return shared, ids


@pytest.mark.parametrize("seed", range(4))  # which of the two packs is met first is a matter of chance
def test_collection_keeps_one_of_two_copies(repository: Repository, tmp_path: Path, seed: int) -> None:
    """Where a chunk is in two packs that are both given up, one copy of it survives the collection that removes them."""
    shared, ids = twice_stored(repository, tmp_path, seed)
    with reopen(repository, tmp_path / "stale") as stale:
        kept = back_up(repository, shared, name="kept").backup
        for backup_id in ids:
            delete(repository, backup_id, now=True)
        assert collect(repository, exclusive=True, grace=0).packs_removed
        for each in (repository, stale):
            assert restored(each, kept) == shared
            assert verify(each, read_data=True).damage == ()
        assert back_up(stale, shared).bytes_stored == 0
    with reopen(repository, tmp_path / "fresh") as fresh:
        assert restored(fresh, kept) == shared


@pytest.mark.parametrize("seed", range(3))
def test_reading_while_packs_go_elsewhere(repository: Repository, tmp_path: Path, seed: int) -> None:
    """Threads that find a chunk's pack gone at the same moment all find the chunk where it went."""
    source = random.Random(seed)
    disk = b"".join(source.randbytes(CHUNK) for _ in range(3 * FAN_OUT))
    back_up(repository, disk + source.randbytes(400 * CHUNK), name="large")
    kept = back_up(repository, disk, name="kept").backup
    with reopen(repository, tmp_path / "reader") as other:
        delete(
            repository,
            next(item.backup for item in list_backups(repository).backups if item.source == "large"),
            now=True,
        )
        assert collect(repository, exclusive=True, grace=0).packs_repacked
        reader = Reader(other)
        entry = find_backup(other, kept).manifest.disks[0]
        barrier = threading.Barrier(4)

        def read(part: int) -> bytes:
            barrier.wait()
            start = part * (len(disk) // 4)
            pieces = reader.read_disk(entry, start, start + len(disk) // 4, threads=2)
            return b"".join(bytes(piece.data) for piece in pieces)

        with ThreadPoolExecutor(4) as pool:
            assert b"".join(pool.map(read, range(4))) == disk


def test_damaged_place_beside_a_sound_one(repository: Repository, tmp_path: Path) -> None:
    """A chunk with a damaged and a sound copy restores whichever place is known first, before any verification too."""
    shared, ids = twice_stored(repository, tmp_path, 9)
    for place in repository.cache.places(repository.chunk_id(shared)):
        damaged = copy_of(repository.storage)
        path = repository.cache.pack(place.pack).path
        data = bytearray(damaged.read(path))
        data[place.entry.offset] ^= 1
        damaged.upload(path, data)
        with open_repository(damaged, passphrase=None, cache_directory=tmp_path / path.replace("/", "-")) as other:
            for backup_id in ids:
                assert restored(other, backup_id)[:CHUNK] == shared


# --- forged by somebody with the keys ---


def store(repository: Repository, blobs: Sequence[tuple[PackKind, bytes, bytes]]) -> None:
    """Store blobs under whatever ids."""
    with Packer(repository) as packer:
        for kind, identity, data in blobs:
            packer.claim(identity)
            packer.store(kind, identity, data)
        packer.flush()


def chunk(repository: Repository, data: bytes) -> bytes:
    """Store an honest chunk."""
    identity = repository.chunk_id(data)
    store(repository, [(PackKind.DATA, identity, data)])
    return identity


def node(repository: Repository, data: bytes) -> bytes:
    """Store whatever as a tree node, under its true id."""
    identity = repository.node_id(data)
    store(repository, [(PackKind.TREE, identity, data)])
    return identity


def publish(repository: Repository, size: int, root: Child, *, chunk_size: int = CHUNK, name: str = "vda") -> str:
    """Publish a manifest with one disk and one file of that tree."""
    top = None if root is None else root.hex()
    manifest = Manifest(
        version=1,
        backup=new_backup_id(),
        repository=repository.config.id,
        time="2026-01-01T00:00:00Z",
        source=SourceInfo(kind="vm", id="forged", name="forged"),
        kind="full",
        consistency="crash",
        disks=(
            DiskEntry(name=name, size=size, chunk_size=chunk_size, root=top, format="raw", identity="x", kind="full"),
        ),
        files=(FileEntry(name="domain.xml", size=size, chunk_size=chunk_size, root=top),),
    )
    path = manifests.path(manifest.backup)
    repository.put_object(Kind.MANIFEST, path, manifests.encode(manifest))
    return manifest.backup


def assert_refused(repository: Repository, backup_id: str) -> None:
    """Assert that nothing of the backup is believed: reading it raises, in bounded memory, and verification names it."""
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            restored(repository, backup_id)
        manifest = find_backup(repository, backup_id).manifest
        with pytest.raises(DamagedError):
            Reader(repository).read_file(manifest.files[0])
        result = verify(repository, [backup_id], read_data=True)
        assert tracemalloc.get_traced_memory()[1] < 40 * MiB
    finally:
        tracemalloc.stop()
    assert result.damage
    assert all(backup_id in "".join(damage.touches) for damage in result.damage)


Forgery = Callable[[Repository], tuple[int, Child]]


def wrong_level(repository: Repository) -> tuple[int, Child]:
    """Put a leaf where an inner node belongs."""
    return 100 * CHUNK, node(repository, encode_node(0, [chunk(repository, b"x" * CHUNK)]))


def upper_level(repository: Repository) -> tuple[int, Child]:
    """Put an inner node where a leaf belongs."""
    return 10 * CHUNK, node(repository, encode_node(1, [chunk(repository, b"x" * CHUNK)]))


def beyond_the_end(repository: Repository) -> tuple[int, Child]:
    """List more chunks than the disk has."""
    return 2 * CHUNK, node(repository, encode_node(0, [chunk(repository, b"x" * CHUNK)] * 3))


def leaf_beyond_the_end(repository: Repository) -> tuple[int, Child]:
    """List more leaves than the disk has."""
    leaf = node(repository, encode_node(0, [chunk(repository, b"x" * CHUNK)] * FAN_OUT))
    return 65 * CHUNK, node(repository, encode_node(1, [leaf, None, leaf]))


def short_chunk(repository: Repository) -> tuple[int, Child]:
    """Use a chunk shorter than its place."""
    return 2 * CHUNK, node(repository, encode_node(0, [chunk(repository, b"x" * 100), None]))


def long_chunk(repository: Repository) -> tuple[int, Child]:
    """Use a chunk longer than its place at the end of the disk."""
    return CHUNK + 5, node(repository, encode_node(0, [None, chunk(repository, b"x" * CHUNK)]))


def one_chunk_two_lengths(repository: Repository) -> tuple[int, Child]:
    """Use one chunk at a place where it fits, and again at the end of the disk, where it is too long."""
    return CHUNK + 5, node(repository, encode_node(0, [chunk(repository, b"x" * CHUNK)] * 2))


def giant_chunk(repository: Repository) -> tuple[int, Child]:
    """Use a chunk of 30 MiB, which compresses to nothing, where 16 KiB belong."""
    return CHUNK, node(repository, encode_node(0, [chunk(repository, bytes(30 * MiB))]))


def other_content(repository: Repository) -> tuple[int, Child]:
    """Store a chunk under the id of another one."""
    identity = repository.chunk_id(b"y" * CHUNK)
    store(repository, [(PackKind.DATA, identity, b"x" * CHUNK)])
    return CHUNK, node(repository, encode_node(0, [identity]))


def other_node(repository: Repository) -> tuple[int, Child]:
    """Store a node under an id that is not its own."""
    store(repository, [(PackKind.TREE, b"n" * 32, encode_node(0, [chunk(repository, b"x" * CHUNK)]))])
    return CHUNK, b"n" * 32


def nonsense_node(repository: Repository) -> tuple[int, Child]:
    """Put noise in the place of a node."""
    return CHUNK, node(repository, b"noise" * 20)


def giant_node(repository: Repository) -> tuple[int, Child]:
    """Use a node of megabytes."""
    return CHUNK, node(repository, encode_node(0, [b"x" * 32]) + bytes(5 * MiB))


def chunk_as_node(repository: Repository) -> tuple[int, Child]:
    """Use a chunk, whose content the guest chose, as a node."""
    data = encode_node(0, [chunk(repository, b"x" * CHUNK)])
    return CHUNK, chunk(repository, data)


def node_as_chunk(repository: Repository) -> tuple[int, Child]:
    """Use a node as a chunk."""
    inner = node(repository, encode_node(0, [b"i" * 32]))
    return 42, node(repository, encode_node(0, [inner]))


def missing_chunk(repository: Repository) -> tuple[int, Child]:
    """Refer to a chunk that is nowhere."""
    return CHUNK, node(repository, encode_node(0, [b"?" * 32]))


def missing_root(repository: Repository) -> tuple[int, Child]:
    """Refer to a root that is nowhere."""
    del repository
    return CHUNK, b"?" * 32


def loop(repository: Repository) -> tuple[int, Child]:
    """Let nodes lead to each other for ever, which takes ids that are not theirs."""
    first, second = b"1" * 32, b"2" * 32
    store(
        repository, [(PackKind.TREE, first, encode_node(1, [second])), (PackKind.TREE, second, encode_node(1, [first]))]
    )
    return 100 * CHUNK, first


FORGERIES: list[Forgery] = [
    wrong_level, upper_level, beyond_the_end, leaf_beyond_the_end, short_chunk, long_chunk, one_chunk_two_lengths, giant_chunk, other_content,
    other_node, nonsense_node, giant_node, chunk_as_node, node_as_chunk, missing_chunk, missing_root, loop,
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_forged_trees(repository: Repository, forge: Forgery) -> None:
    """Whatever a chunk list or a chunk claims, it is checked; verification and restore agree, and others are not touched."""
    honest = back_up(repository, DISK)
    forged = publish(repository, *forge(repository))
    assert_refused(repository, forged)
    assert restored(repository, honest.backup) == DISK


@pytest.mark.parametrize("size", [len(DISK) - 1, len(DISK) - CHUNK, CHUNK, 1, 70 * CHUNK])
def test_honest_list_for_a_disk_of_another_size(repository: Repository, size: int) -> None:
    """A list that is sound for one disk is not for another; verification says so also when it meets both."""
    honest = back_up(repository, DISK)
    root = honest.disks[0].root
    assert root is not None
    forged = publish(repository, size, bytes.fromhex(root))
    with pytest.raises(DamagedError):
        restored(repository, forged)
    result = verify(repository)
    assert [damage.touches[0].split("/")[0] for damage in result.damage] == [forged]


def test_forged_sizes(repository: Repository) -> None:
    """A petabyte of nothing costs nothing; a configuration file of that size is refused."""
    backup = publish(repository, manifests.MAX_DISK, None)
    entry = find_backup(repository, backup).manifest.disks[0]
    assert list(Reader(repository).read_disk(entry)) == []
    with pytest.raises(DamagedError):
        Reader(repository).read_file(find_backup(repository, backup).manifest.files[0])
    sparse = publish(repository, manifests.MAX_DISK, missing_chunk(repository)[1])
    assert verify(repository, [sparse]).damage


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "a/b", "..", "a\nb", "-x", ""])
def test_forged_names(repository: Repository, name: str) -> None:
    """A manifest whose disk has a name that leads elsewhere is not listed but as unreadable, and cannot be restored."""
    honest = back_up(repository, DISK)
    forged = publish(repository, CHUNK, None, name=name)
    listing = list_backups(repository)
    assert [item.backup for item in listing.backups] == [honest.backup]
    assert list(listing.unreadable) == [manifests.path(forged)]
    with pytest.raises(DamagedError):
        find_backup(repository, forged)
    assert verify(repository).corrupt == 1


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.ZLIB, Codec.NONE, 9])
def test_bomb_in_a_pack(repository: Repository, codec: int) -> None:
    """A blob that says it has 16 KiB and expands to gigabytes, or has an unknown codec, costs nothing and is corrupt."""
    data = bytes(CHUNK)
    identity = repository.chunk_id(data)
    packed = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bomb = b"".join(packed.compress(bytes(4 * MiB)) for _ in range(64)) + packed.flush()
    builder = PackBuilder(
        PackKind.DATA, repository.id, repository.wrapping_key(PackKind.DATA), bytearray(256 * KiB), 128 * KiB
    )
    bomb = bomb[:CHUNK]
    offset = builder.reserve(identity, len(bomb) + TAG, CHUNK, codec)
    assert offset is not None
    builder.put(offset, identity, CHUNK, codec, bomb)
    builder.close()
    pack = builder.finish()
    repository.storage.upload(pack.info.path, pack.data)
    put_index(repository, [IndexedPack(pack.info, pack.table)])
    assert_refused(repository, publish(repository, CHUNK, node(repository, encode_node(0, [identity]))))


def put_index(repository: Repository, packs: list[IndexedPack]) -> None:
    """Publish an index object."""
    repository.put_object(Kind.INDEX, f"{INDEX}/{new_backup_id()}", index.encode(packs))
    repository.synchronise()


@pytest.mark.parametrize(
    ("offset", "stored", "raw"),
    [
        (50, 100, 100),
        (2**32 - 1, 100, 100),
        (100, 2**32 - 1, CHUNK),
        (100, 3, CHUNK),
        (100, 2**31, 2**32 - 1),
        (100, 200, 100),
    ],
)
def test_forged_index(repository: Repository, tmp_path: Path, offset: int, stored: int, raw: int) -> None:
    """An index object with places outside of their packs is damage: everything is read by the packs' own tables."""
    backup = back_up(repository, DISK).backup
    honest = next(repository.storage.list(INDEX)).path
    lies = []
    for _, pack in repository.cache.packs():
        rows = [row._replace(offset=offset, stored=stored, raw=raw) for row in Reader(repository).pack_table(pack)]
        lies.append(IndexedPack(pack, b"".join(ENTRY.pack(*row) for row in rows)))
    put_index(repository, lies)
    repository.storage.delete(honest)
    with reopen(repository, tmp_path / "other") as other:
        assert restored(other, backup) == DISK
        assert verify(other).corrupt == 1


def test_lying_index(repository: Repository, tmp_path: Path) -> None:
    """An index that swaps the places of chunks leads to errors or to the right bytes, never to other ones."""
    backup = back_up(repository, DISK).backup
    pack = next(info for _, info in repository.cache.packs() if info.kind == PackKind.DATA)
    rows = Reader(repository).pack_table(pack)
    swapped = [row._replace(id=rows[at - 1].id) for at, row in enumerate(rows)]
    with reopen(repository, tmp_path / "other") as other:
        other.cache.clear()
        other.cache.load([("index/lie", [IndexedPack(pack, b"".join(ENTRY.pack(*row) for row in swapped))])])
        other.cache.set_states(removed=(), condemned=())
        assert restored(other, backup) == DISK, "it is found out, and the index loaded anew"
    for info in list(repository.storage.list(INDEX)):
        repository.storage.delete(info.path)
    put_index(repository, [IndexedPack(pack, b"".join(ENTRY.pack(*row) for row in swapped))])
    with reopen(repository, tmp_path / "third") as other, pytest.raises(ChunkCorruptError):
        restored(other, backup)


# --- tampered with by somebody who has only the storage ---


def objects(storage: MemoryStorage, prefix: str) -> list[str]:
    """Return the paths below a folder."""
    return sorted(info.path for info in storage.list(prefix))


@pytest.mark.parametrize("prefix", ["manifests", "index", "packs", "marks"])
def test_objects_under_other_names(repository: Repository, tmp_path: Path, prefix: str) -> None:
    """An object in another one's place, or a copy under a new name, is not believed; what is left restores."""
    backups = [back_up(repository, bytes([at]) * (at * CHUNK), name=str(at)).backup for at in (1, 2, 3)]
    contents = {backup_id: bytes([at]) * (at * CHUNK) for at, backup_id in enumerate(backups, 1)}
    for backup_id in backups:
        verify(repository, [backup_id])
    assert isinstance(repository.storage, MemoryStorage)
    paths = objects(repository.storage, prefix)
    for number, (source, target) in enumerate(
        [(paths[0], paths[-1]), (paths[-1], paths[0]), (paths[0], paths[0][:-4] + "0000")]
    ):
        storage = copy_of(repository.storage)
        storage.upload(target, storage.read(source))
        with open_repository(storage, passphrase=None, cache_directory=tmp_path / str(number)) as other:
            right = 0
            for backup_id, content in contents.items():
                try:
                    assert restored(other, backup_id) == content
                    right += 1
                except LabBackupError:
                    pass
            assert right >= 2
            result = verify(other, read_data=True)
            assert result.damage or prefix == "packs", "a pack that nobody knows is garbage"


def test_objects_of_another_repository(repository: Repository, tmp_path: Path) -> None:
    """Objects copied from another repository are refused, whatever they are."""
    with new_repository(MemoryStorage(), tmp_path / "other") as other:
        back_up(other, DISK)
        for prefix, kind in (("manifests", Kind.MANIFEST), ("index", Kind.INDEX)):
            assert isinstance(other.storage, MemoryStorage)
            path = objects(other.storage, prefix)[0]
            with pytest.raises(DamagedError):
                repository.unseal(kind, path, other.storage.read(path))


def test_replayed_mark(repository: Repository) -> None:
    """An old mark put back beside the newer one changes nothing; a wrong kind, or another backup's, is damage."""
    storage = repository.storage
    first, second = (back_up(repository, DISK, name=name).backup for name in "ab")
    delete(repository, first)
    path = next(info.path for info in storage.list(f"marks/{first}"))
    old = storage.read(path)
    undelete(repository, first)
    assert find_backup(repository, first).state.deleted is None
    storage.upload(path, old)
    assert find_backup(repository, first).state.deleted is None
    stolen = f"marks/{second}/{path.rsplit('/', 1)[1]}"
    storage.upload(stolen, old)
    assert find_backup(repository, second).state.deleted is None
    assert list(list_backups(repository).unreadable) == [stolen]


def test_newer_manifest(repository: Repository) -> None:
    """A backup by a newer version is named as such; all others are there, and nothing is collected that it may need."""
    honest = back_up(repository, DISK).backup
    path = manifests.path(new_backup_id())
    repository.put_object(Kind.MANIFEST, path, b'{"version": 3}')
    listing = list_backups(repository)
    assert [item.backup for item in listing.backups] == [honest]
    assert "newer" in listing.unreadable[path]
    assert restored(repository, honest) == DISK
    with pytest.raises(NewerVersionError):
        collect(repository)
    with pytest.raises(NewerVersionError):
        delete(repository, path.split("/")[1], now=True)
    assert verify(repository).corrupt == 1


def test_odd_objects(repository: Repository, tmp_path: Path) -> None:
    """Objects that nobody of us wrote do no harm where they lie among ours."""
    backup = back_up(repository, DISK).backup
    for path in ("packs/zz/hello", "packs/stray", "keys/note.txt", "leases/x", "marks/stray", "readme.txt"):
        repository.storage.upload(path, b"hello")
    with reopen(repository, tmp_path / "other") as other:
        assert restored(other, backup) == DISK
        collect(other)
        assert restored(other, backup) == DISK


def test_nothing_is_reserved_for_what_a_pack_claims(repository: Repository) -> None:
    """A pack object of 256 MiB with our header and nothing else is refused without being read."""
    back_up(repository, DISK)
    info = next(info for _, info in repository.cache.packs())
    header = repository.storage.read(info.path, 0, 100)
    repository.storage.upload(info.path, header + bytes(20 * MiB) + b"\xff\xff\xff\x0f\xff\xff\xff\x00LBPE")
    tracemalloc.start()
    try:
        assert verify(repository, read_data=True).damage
        repository.reload()
        assert tracemalloc.get_traced_memory()[1] < 10 * MiB
    finally:
        tracemalloc.stop()


def test_the_proof_lists_rather_than_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that relies on many packs is proved by a list of them; on a few of many, by a look at each."""
    small_packs(monkeypatch)
    storage = FaultyStorage(MemoryStorage())
    with new_repository(storage, tmp_path) as repository:
        content = random.Random(1).randbytes(1200 * CHUNK)
        back_up(repository, content, name="one")
        storage.log.clear()
        back_up(repository, content, name="two")
        looks = [call for call in storage.log if call.startswith("stat packs/")]
        assert (len(looks), storage.log.count("list packs")) == (0, 1)
        storage.log.clear()
        back_up(repository, content[: 2 * CHUNK], name="three")
        looks = [call for call in storage.log if call.startswith("stat packs/")]
        assert 0 < len(looks) <= 3
        assert "list packs" not in storage.log
