"""Damage of every kind of object: verification names it, and a restore raises or gives exactly the right bytes.

One repository with everything in it is made once; each test damages a copy of it.
"""

import random
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_backup.errors import LabBackupError
from lab_backup.extent import Extent
from lab_backup.operations.catalogue import find_backup, list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect, undelete, unprotect
from lab_backup.operations.verify import verify
from lab_backup.repository import keys as keys_module
from lab_backup.repository.errors import DamagedError, ProtectedError, WrongKeyError
from lab_backup.repository.pack import HEADER_SIZE, TRAILER
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up, copy_of, flip, new_repository, restored

PASSPHRASE = "correct horse"
FILES = {"domain.xml": b"<domain/>" * 50, "nvram": bytes(1000) + b"boot"}
KINDS = ["config", "config.copy", "keys", "packs", "index", "manifests", "marks", "condemned", "removed", "damaged"]


@dataclass
class Scene:
    """A repository, and what each of its backups must restore to: (backup, disk) → content."""

    storage: MemoryStorage
    recovery_key: str
    expected: dict[tuple[str, str], bytes] = field(default_factory=dict)
    second: str = ""  # the newest backup that is not marked as deleted
    third: str = ""  # marked as deleted
    garbage: frozenset[str] = frozenset()

    def paths(self, kind: str) -> list[str]:
        """Return the paths of one kind of object, without packs that no backup needs and their index."""
        return sorted(info.path for info in self.storage.list(kind) if info.path not in self.garbage) or [kind]

    def restores(self, repository: Repository) -> dict[tuple[str, str], LabBackupError | None]:
        """Restore everything; what comes back is right, or it is an error."""
        outcome: dict[tuple[str, str], LabBackupError | None] = {}
        for (backup_id, disk), content in self.expected.items():
            try:
                assert restored(repository, backup_id, disk) == content
                outcome[backup_id, disk] = None
            except LabBackupError as error:
                outcome[backup_id, disk] = error
            try:
                manifest = find_backup(repository, backup_id).manifest
                assert {entry.name: Reader(repository).read_file(entry) for entry in manifest.files} == FILES
            except LabBackupError as error:
                outcome[backup_id, "files"] = error
        return outcome


def place_of(repository: Repository, chunk: bytes) -> tuple[str, int]:
    """Return the pack's path and the offset where a chunk is stored."""
    location = repository.cache.locate(repository.chunk_id(chunk))
    assert location is not None
    return repository.cache.pack(location.pack).path, location.entry.offset


class Clock:
    """A clock that stands still until it is moved."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Make a repository with two disks in three backups, and at least one object of every kind."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    source = random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "MEMORY_KIB", 32)
        patch.setattr(keys_module, "ITERATIONS", 1)
        repository = new_repository(storage, tmp_path_factory.mktemp("cache"), passphrase=PASSPHRASE)
    scene = Scene(storage, repository.keys.recovery_key())

    def add(vda: bytes, vdb: bytes, changes: list[Extent] | None = None) -> str:
        summary = back_up(repository, {"vda": vda, "vdb": vdb}, changes=changes, files=FILES)
        scene.expected |= {(summary.backup, "vda"): vda, (summary.backup, "vdb"): vdb}
        return summary.backup

    for collections in (2, 1):  # garbage: of a pack that is removed already, and of one that is only condemned
        garbage = back_up(repository, source.randbytes(5 * CHUNK), name="garbage")
        delete(repository, garbage.backup, now=True)
        for _ in range(collections):
            clock.now += timedelta(days=2)
            collect(repository)
    scene.garbage = frozenset(info.path for kind in ("packs", "index") for info in storage.list(kind))
    vda = bytearray(source.randbytes(70 * CHUNK + 99))
    vda[20 * CHUNK : 40 * CHUNK] = bytes(20 * CHUNK)
    vdb = bytes(200) + b"text " * 20_000
    first = add(bytes(vda), vdb)
    vda[3 * CHUNK : 3 * CHUNK + 5] = b"12345"
    scene.second = add(bytes(vda), vdb, [Extent(3 * CHUNK, 5)])
    protect(repository, scene.second)
    scene.third = add(bytes(vda), vdb[::-1])
    delete(repository, scene.third)
    # A chunk that was damaged once, and is not any more: its record stays.
    path, at = place_of(repository, bytes(vda[:CHUNK]))
    flip(storage, path, at)
    verify(repository, [first], read_data=True)
    flip(storage, path, at)
    assert {info.path.split("/")[0] for info in storage.list()} == {*KINDS, "reserve"}, (
        "there is an object of every kind"
    )
    repository.close()
    return scene


@pytest.fixture(scope="module")
def warm(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that knows the whole scene, as on the host that makes the backups."""
    directory = tmp_path_factory.mktemp("warm")
    with opened(scene.storage, scene, directory):
        pass
    return directory


def opened(storage: MemoryStorage, scene: Scene, cache: Path) -> Repository:
    """Open a copy of the scene, without deriving keys."""
    return open_repository(storage, passphrase=scene.recovery_key, cache_directory=cache)


def assert_told(storage: MemoryStorage, scene: Scene, cache: Path, path: str) -> None:
    """Assert that the damage in `storage` is named by verification or on opening, and that no restore is wrong."""
    try:
        repository = opened(storage, scene, cache)
    except (DamagedError, WrongKeyError):
        assert not path.startswith("config"), "the other one opens the repository"
        return
    with repository:
        outcome = scene.restores(repository)
        result = verify(repository, read_data=True)
        assert result.corrupt + result.missing == len(result.damage) > 0, f"nothing was found after damage to {path}"
        if path.startswith(("index/", "condemned/", "removed/", "damaged/", "marks/", "keys/", "config")):
            assert not any(outcome.values()), "everything restores without this object"
        assert [what for what in outcome if outcome[what] is None], (
            "one damaged object does not take all backups with it"
        )


def positions(size: int, kind: str, source: random.Random) -> list[int]:
    """Return where to flip: places of every field, and some at random."""
    fixed = {"packs": [4, 7, 30, 45, 80, HEADER_SIZE + 1, -1, -6, -10, -TRAILER.size - 1, -TRAILER.size - 30]}
    named = fixed.get(kind, [5, size // 2, -1])
    return [at % size for at in named] + [source.randrange(size) for _ in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_bit_flips(scene: Scene, warm: Path, tmp_path: Path, kind: str) -> None:
    """A flipped bit in any object is found, by a host that knows the repository and by one that never saw it."""
    source = random.Random(kind)
    for number, path in enumerate(scene.paths(kind)):
        for at in positions(scene.storage.stat(path).size, kind, source)[: 14 if kind == "packs" else 4]:
            storage = copy_of(scene.storage)
            flip(storage, path, at, source.randrange(8))
            assert_told(storage, scene, warm if (number + at) % 2 else tmp_path / secrets.token_hex(4), path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", ["empty", "short", "longer"])
def test_wrong_length(scene: Scene, warm: Path, tmp_path: Path, kind: str, cut: str) -> None:
    """An object that is empty, cut off, or has something behind its end, is found."""
    for number, path in enumerate(scene.paths(kind)[:3]):
        storage = copy_of(scene.storage)
        data = storage.read(path)
        storage.upload(path, {"empty": b"", "short": data[: len(data) * 2 // 3], "longer": data + b"more"}[cut])
        assert_told(storage, scene, warm if number % 2 else tmp_path / str(number), path)


def test_missing_objects(scene: Scene, warm: Path, tmp_path: Path) -> None:
    """A pack or an index object that is gone is named; what does not need it restores."""
    for kind in ("packs", "index"):
        for number, path in enumerate(scene.paths(kind)):
            storage = copy_of(scene.storage)
            storage.delete(path)
            assert_told(storage, scene, warm if number % 2 else tmp_path / f"{kind}{number}", path)


def test_no_index_at_all(scene: Scene, tmp_path: Path) -> None:
    """With all index objects gone everything restores from the packs' own tables, and gc makes the index anew."""
    storage = copy_of(scene.storage)
    for path in scene.paths("index"):
        storage.delete(path)
    with opened(storage, scene, tmp_path / "a") as repository:
        assert not any(scene.restores(repository).values())
        result = verify(repository, read_data=True)
        assert (result.corrupt, result.missing) == (0, len([*scene.paths("packs")]))
        collect(repository)
        assert list(storage.list("index"))
        assert verify(repository, read_data=True).damage == ()
    with opened(storage, scene, tmp_path / "b") as repository:
        assert not any(scene.restores(repository).values())


@pytest.mark.parametrize("kind", ["index", "condemned", "removed", "damaged"])
def test_gc_mends(scene: Scene, tmp_path: Path, kind: str) -> None:
    """A damaged index object or list keeps nobody from restoring, and after a collection verification finds nothing."""
    storage = copy_of(scene.storage)
    for path in scene.paths(kind):
        flip(storage, path, 80)
    with opened(storage, scene, tmp_path / "a") as repository:
        assert not any(scene.restores(repository).values())
        assert verify(repository).corrupt == len(scene.paths(kind))
        undelete(repository, scene.third)
        collect(repository, grace=0, exclusive=True)
        assert verify(repository, read_data=True).damage == ()
        assert not any(scene.restores(repository).values())
    with opened(storage, scene, tmp_path / "b") as repository:
        assert not any(scene.restores(repository).values())


def test_damaged_condemned_list_stops_writers(scene: Scene, tmp_path: Path) -> None:
    """While nobody can tell what will be removed, no backup is made; a collection ends that."""
    storage = copy_of(scene.storage)
    for path in scene.paths("condemned"):
        flip(storage, path, 80)
    with opened(storage, scene, tmp_path) as repository:
        with pytest.raises(DamagedError) as caught:
            back_up(repository, b"new")
        assert "gc" in str(caught.value.hint)
        assert not list(storage.list("leases"))
        collect(repository)
        back_up(repository, b"new")


def test_damaged_manifest_can_be_given_up(scene: Scene, tmp_path: Path) -> None:
    """Backups whose manifests are damaged show only among what cannot be read, stop collections, and can be deleted for good."""
    storage = copy_of(scene.storage)
    for backup_id in (scene.second, scene.third):
        flip(storage, f"manifests/{backup_id}", 70)
    with opened(storage, scene, tmp_path) as repository:
        listing = list_backups(repository)
        assert len(listing.backups) == 1
        assert set(listing.unreadable) == {f"manifests/{scene.second}", f"manifests/{scene.third}"}
        with pytest.raises(DamagedError):
            collect(repository)
        for spec in (scene.third, scene.third[:8]):
            with pytest.raises(DamagedError):
                find_backup(repository, spec)
        with pytest.raises(DamagedError):
            delete(repository, scene.third)
        assert delete(repository, scene.third[:12], now=True).backup == scene.third
        with pytest.raises(ProtectedError):
            delete(repository, scene.second, now=True)
        unprotect(repository, scene.second)
        delete(repository, scene.second, now=True)
        assert list_backups(repository).unreadable == {}
        collect(repository)


@pytest.mark.parametrize("incremental", [False, True], ids=["full", "incremental"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "gone", "gone with its index"])
def test_healing(scene: Scene, tmp_path: Path, how: str, *, incremental: bool) -> None:
    """After a verification the next backup of the same content stores again what is damaged, also an incremental one."""
    storage = copy_of(scene.storage)
    disks = {name: scene.expected[scene.second, name] for name in ("vda", "vdb")}
    with opened(storage, scene, tmp_path / "c") as repository:
        path, at = place_of(repository, disks["vda"][:CHUNK])
    if how == "flipped":
        flip(storage, path, at + 100)
    elif how == "cut off":
        storage.upload(path, storage.read(path)[:-1000])
    else:
        storage.delete(path)
        for index in scene.paths("index") if how == "gone with its index" else ():
            storage.delete(index)
    with opened(storage, scene, tmp_path / "a") as repository:
        assert verify(repository, read_data=True).damage
        summary = back_up(repository, disks, changes=[Extent(0, 0)] if incremental else None, files=FILES)
        if how != "gone with its index":  # which takes the chunk list out of sight, so that all is read
            assert (summary.kind, summary.warnings) == ("incremental" if incremental else "full", ())
        assert [restored(repository, summary.backup, name) == disks[name] for name in disks] == [True, True]
        assert verify(repository, [summary.backup, scene.second], read_data=True).damage == ()
    with opened(storage, scene, tmp_path / "b") as repository:
        collect(repository)
        touched = {
            touch.split("/")[0] for damage in verify(repository, read_data=True).damage for touch in damage.touches
        }
        first = next(iter(scene.expected))[0]
        assert touched <= ({first} if how != "flipped" else set()), "only what the first backup alone had is lost"
        outcome = scene.restores(repository)
        assert {backup_id for backup_id, _ in outcome if outcome[backup_id, _]} <= touched


@pytest.mark.parametrize("incremental", [False, True], ids=["full", "incremental"])
def test_healing_of_tree_nodes(scene: Scene, tmp_path: Path, *, incremental: bool) -> None:
    """Where the chunk list of the last backup is damaged, the disk is read whole and the list stored again."""
    storage = copy_of(scene.storage)
    backup_id = scene.second
    content = scene.expected[backup_id, "vda"]
    with opened(storage, scene, tmp_path / "a") as repository:
        entry = find_backup(repository, backup_id).manifest.disks[0]
        assert entry.root is not None
        location = repository.cache.locate(bytes.fromhex(entry.root))
        assert location is not None
        flip(storage, repository.cache.pack(location.pack).path, location.entry.offset)
        assert verify(repository).corrupt == 1, "the structure alone shows it"
        with pytest.raises(DamagedError):
            restored(repository, backup_id)
        with pytest.raises(DamagedError):
            collect(repository)
        other = scene.expected[backup_id, "vdb"]
        summary = back_up(repository, {"vda": content, "vdb": other}, changes=[Extent(0, 0)] if incremental else None)
        assert bool(summary.warnings) == incremental
    with opened(storage, scene, tmp_path / "b") as repository:
        assert verify(repository, read_data=True).damage == ()
        assert not any(scene.restores(repository).values())
        collect(repository)
