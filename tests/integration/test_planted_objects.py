"""Somebody who may write the storage, but has no key, plants objects: nothing he puts there stops a restore, or lets locks run out."""

import secrets
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_backup.blocks import Buffer
from lab_backup.errors import LabBackupError
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect, undelete, unprotect
from lab_backup.repository.backups import Backups
from lab_backup.repository.envelope import HEADER, Kind
from lab_backup.repository.errors import DamagedError, RepositoryError
from lab_backup.repository.immutability import IMMUTABILITY, promise
from lab_backup.repository.pack import PACKS, PackKind
from lab_backup.repository.repository import CONDEMNED, DAMAGED, INDEX, LEASES, REMOVED, open_repository
from lab_backup.storage.base import StorageAccessError, StorageBackend, StorageError
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.s3.settings import Encryption
from lab_backup.storage.s3.storage import S3Storage
from lab_backup.units import GiB
from support.engine import CHUNK, back_up, new_repository, restored
from support.immutable import unlock_all
from support.seaweed import Seaweed
from support.waiting import wait_until

PERIOD = timedelta(days=30)
JUNK = "ab" * 16
PLACES = [INDEX, REMOVED, CONDEMNED, DAMAGED, IMMUTABILITY, "manifests", "keys", "marks", PACKS, LEASES]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        """Begin somewhere."""
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


class Unreadable(MemoryStorage):
    """A storage that refuses to hand out one object, as S3 does with what was encrypted by another customer's key."""

    planted = ""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read, but not that one."""
        if path == self.planted:
            raise StorageError(f"the server answered InvalidRequest about {path}")
        return super().read(path, offset, length)


def planted_name(place: str, backup: str) -> str:
    """Return a name below `place` that the repository would look at."""
    if place == "marks":
        return f"marks/{backup}/00000009-{'a' * 16}"
    return f"{place}/{JUNK[:2]}/{JUNK}" if place == PACKS else f"{place}/{JUNK}"


@pytest.mark.parametrize("how", ["junk", "newer", "unreadable"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_planted_stops_restores_or_lets_locks_run_out(place: str, how: str, tmp_path: Path) -> None:
    """Junk, a forged version and what cannot be read, anywhere: backups restore, and each collection prolongs their locks, whether it refuses or not."""
    clock = Clock()
    storage = Unreadable(clock=clock)
    content = secrets.token_bytes(5 * CHUNK)
    with new_repository(storage, tmp_path / "one", passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        kept = back_up(repository, content).backup
        collect(repository)
        header = HEADER.pack(b"LBSO", 2 if how == "newer" else 1, 1, 0, repository.id, secrets.token_bytes(32), 10)
    needed = [info.path for prefix in (PACKS, INDEX, "manifests", "keys") for info in storage.list(prefix)]
    name = planted_name(place, kept)
    storage.upload(name, header + bytes(40))
    if how == "unreadable":
        storage.planted = name
    for turn in range(4):
        clock.now += timedelta(days=20)
        with open_repository(storage, passphrase="correct", cache_directory=tmp_path / str(turn)) as repository:
            refused = None
            try:
                collect(repository)
            except LabBackupError as error:
                refused = error
            assert refused is None or (place in {IMMUTABILITY, "manifests"} and isinstance(refused, DamagedError))
            assert all((storage.locked_until(path) or clock.now) >= clock.now + PERIOD for path in needed), refused
            assert restored(repository, kept) == content
            if place != IMMUTABILITY:  # until the promise is given anew, nobody knows for how long to lock
                assert back_up(repository, secrets.token_bytes(CHUNK)).backup


def test_a_planted_manifest_can_be_given_up(tmp_path: Path) -> None:
    """The way out that a refusing collection names works also for a manifest that claims to be of a newer version."""
    with new_repository(MemoryStorage(), tmp_path, passphrase="correct") as repository:
        header = HEADER.pack(b"LBSO", 2, 2, 0, repository.id, secrets.token_bytes(32), 10)
        repository.storage.upload(f"manifests/{JUNK}", header + bytes(40))
        with pytest.raises(DamagedError):
            collect(repository)
        delete(repository, JUNK, now=True)
        collect(repository)


def test_a_damaged_list_that_cannot_go_does_not_stop_backups_for_ever(tmp_path: Path) -> None:
    """A list of condemned packs is damaged, and locked for years: a collection stands in for it, and backups go on; when its lock ends it goes."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, secrets.token_bytes(5 * CHUNK))
        storage.upload(f"{CONDEMNED}/{JUNK}", b"junk")
        storage.lock(f"{CONDEMNED}/{JUNK}", clock.now + timedelta(days=100))
        with pytest.raises(DamagedError, match="no backup can rely"):
            back_up(repository, secrets.token_bytes(CHUNK))
        result = collect(repository)
        assert any("goes when its lock ends" in note for note in result.notes)
        for _ in range(4):
            back_up(repository, secrets.token_bytes(CHUNK))
            clock.now += timedelta(days=20)
            collect(repository)
        assert len(list(storage.list(CONDEMNED))) == 2, "one that stands in for it suffices"
        assert storage.locked_until(f"{CONDEMNED}/{JUNK}") == datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=100)
        clock.now += timedelta(days=40)
        collect(repository)
        assert f"{CONDEMNED}/{JUNK}" not in {info.path for info in storage.list(CONDEMNED)}
        clock.now += timedelta(days=100)
        collect(repository)
        assert list(storage.list(CONDEMNED)) == []


def test_a_deletion_that_was_taken_back_cannot_be_put_back(tmp_path: Path) -> None:
    """The mark that takes a deletion back, and one that protects, are locked like the backup: nobody removes them to let an old mark count again."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        backup = back_up(repository, secrets.token_bytes(5 * CHUNK)).backup
        delete(repository, backup)
        old = {info.path: storage.read(info.path) for info in storage.list("marks")}
        undelete(repository, backup)
        for _ in range(8):
            for info in list(storage.list("marks")):
                try:
                    storage.delete(info.path)
                except StorageError:
                    continue
            for path, data in old.items():
                storage.upload(path, data)
            assert [each.state.deleted for each in Backups(repository).all()] == [None]
            clock.now += timedelta(days=7)
            assert collect(repository).backups_removed == []
        protect(repository, backup)
        unprotect(repository, backup)  # both marks are locked, and the later one counts
        delete(repository, backup)
        clock.now += 2 * PERIOD
        assert collect(repository).backups_removed == [backup]
        clock.now += 2 * PERIOD
        collect(repository)
        assert list(storage.list("marks")) == []


def test_marks_of_a_killed_deletion_do_not_end_a_collection(tmp_path: Path) -> None:
    """A backup that was deleted for good leaves locked marks: they wait for their end."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        backup = back_up(repository, secrets.token_bytes(2 * CHUNK)).backup
        protect(repository, backup)
        for info in storage.list("marks"):
            storage.lock(info.path, clock.now + PERIOD)
        unprotect(repository, backup)
        delete(repository, backup, now=True)
        clock.now += timedelta(days=20)
        assert collect(repository).objects_locked == 1
        clock.now += PERIOD
        collect(repository)
        assert list(storage.list("marks")) == []


def test_index_and_lists_are_among_the_locks_that_are_looked_at(tmp_path: Path) -> None:
    """Index objects that lost their locks, in a storage that was copied, are noticed, though all else is locked as it was."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, secrets.token_bytes(2 * CHUNK))
        collect(repository)
        clock.now += timedelta(minutes=5)
        index = next(iter(storage.list(INDEX))).path
        storage._locks.pop(index)
        result = collect(repository)
        assert any("laid anew" in note for note in result.notes)
        assert storage.locked_until(index) is not None


@pytest.mark.parametrize("place", [INDEX, "manifests", PACKS, REMOVED, CONDEMNED, "keys", "marks"])
def test_a_symbolic_link_is_damage_of_that_object(place: str, tmp_path: Path) -> None:
    """A link in a local storage is read by nobody, and spoils no more than itself; the collection removes it or says what to do."""
    root = tmp_path / "storage"
    root.mkdir()
    content = secrets.token_bytes(3 * CHUNK)
    secret = tmp_path / "secret"
    secret.write_bytes(b"not ours")
    try:
        with new_repository(LocalStorage(root), tmp_path / "one", passphrase="correct") as repository:
            if repository.storage.locks:
                promise(repository, timedelta(minutes=1), by="test")
            kept = back_up(repository, content).backup
        link = root / planted_name(place, kept)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(secret)
        with open_repository(LocalStorage(root), passphrase="correct", cache_directory=tmp_path / "two") as repository:
            assert restored(repository, kept) == content
            if place == "manifests":
                with pytest.raises(DamagedError, match="symbolic link"):
                    collect(repository)
                delete(repository, JUNK, now=True)
            result = collect(repository)
            assert back_up(repository, secrets.token_bytes(CHUNK)).backup
            assert secret.read_bytes() == b"not ours"
            if place in {INDEX, CONDEMNED}:
                assert not link.is_symlink(), result.notes
    finally:
        unlock_all(tmp_path)


def test_what_is_planted_and_locked_for_a_hundred_years_can_be_given_up(tmp_path: Path) -> None:
    """A manifest of junk, and a genuine one of a backup that was removed for good, both locked by somebody for ever: marked as deleted, they stop no collection."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    content = secrets.token_bytes(4 * CHUNK)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        gone = back_up(repository, secrets.token_bytes(4 * CHUNK)).backup
        old = storage.read(f"manifests/{gone}")
        delete(repository, gone, now=True)
        for _ in range(3):
            clock.now += timedelta(days=3)
            collect(repository)
        promise(repository, PERIOD, by="test")
        kept = back_up(repository, content).backup
        for name, data in ((JUNK, b"junk"), (gone, old)):
            storage.upload(f"manifests/{name}", data)
            storage.lock(f"manifests/{name}", clock.now + timedelta(days=36500))
        with pytest.raises(DamagedError):
            collect(repository)
        assert delete(repository, JUNK, now=True).locked_until is not None
        assert delete(repository, gone).locked_until is not None
        clock.now += timedelta(days=3)
        for _ in range(6):
            clock.now += timedelta(days=10)
            collect(repository)
        assert restored(repository, kept) == content
        assert (storage.locked_until(f"manifests/{kept}") or clock.now) >= clock.now + PERIOD
        delete(repository, kept)
        clock.now += 2 * PERIOD
        assert collect(repository).backups_removed == [kept], "space comes back"


class Stubborn(MemoryStorage):
    """A storage that refuses to change the lock of one object, and to remove another, as S3 does with other modes of locks and legal holds."""

    held = ""

    def lock(self, path: str, until: datetime) -> None:
        """Lock, but not that one."""
        if path == self.held:
            raise StorageAccessError(f"the server refuses access to {path}")
        super().lock(path, until)

    def delete(self, path: str) -> None:
        """Remove, but not that one."""
        if path == self.held:
            raise StorageAccessError(f"the server refuses access to {path}")
        super().delete(path)


@pytest.mark.parametrize("place", ["keys", INDEX, CONDEMNED])
def test_an_object_that_nobody_may_touch_keeps_no_other_from_its_lock(place: str, tmp_path: Path) -> None:
    """What cannot be locked or removed is told, and all else is locked and collected; where nothing at all may be locked, that is an error."""
    clock = Clock()
    storage = Stubborn(clock=clock)
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        kept = back_up(repository, secrets.token_bytes(4 * CHUNK)).backup
        needed = [info.path for prefix in (PACKS, INDEX, "manifests", "keys") for info in storage.list(prefix)]
        storage.upload(planted_name(place, kept), b"junk")
        storage.held = planted_name(place, kept)
        for _ in range(4):
            clock.now += timedelta(days=20)
            notes = collect(repository).notes
            assert any(storage.held in note for note in notes), notes
            assert all((storage.locked_until(path) or clock.now) >= clock.now + PERIOD for path in needed)
            assert place == CONDEMNED or back_up(repository, secrets.token_bytes(CHUNK)).backup


def test_a_giant_object_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file of 64 GiB where a small object belongs is damage of that object, and is not read whole."""
    root = tmp_path / "storage"
    root.mkdir()
    content = secrets.token_bytes(3 * CHUNK)
    with new_repository(LocalStorage(root), tmp_path / "one", passphrase="correct") as repository:
        kept = back_up(repository, content).backup
    for place in (INDEX, REMOVED, DAMAGED, "keys", f"marks/{kept}", IMMUTABILITY):
        (root / place).mkdir(parents=True, exist_ok=True)
        with (root / place / (f"00000009-{'a' * 16}" if "marks" in place else JUNK)).open("wb") as file:
            file.truncate(64 * GiB)
    with open_repository(LocalStorage(root), passphrase="correct", cache_directory=tmp_path / "two") as repository:
        assert restored(repository, kept) == content


# --- on S3, where who may write can put another version over every object ---


class Raced(S3Storage):
    """A store at which somebody puts another version over each pack right after we wrote it, before we lock it."""

    def __init__(self, *arguments: str, seaweed: Seaweed) -> None:
        """Race at `seaweed`."""
        super().__init__(*arguments, connection=seaweed.connection())
        self.seaweed, self.armed = seaweed, False

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Write, and lose the race."""
        super().upload(path, data, metadata)
        if self.armed and path.startswith("packs/"):
            with closing(
                S3Storage(self._bucket, self._prefix.strip("/"), connection=self.seaweed.connection())
            ) as other:
                other.upload(path, b"J" * len(data))


def test_what_was_put_over_a_pack_before_its_lock_is_not_what_gets_locked(seaweed: Seaweed, tmp_path: Path) -> None:
    """Between upload and lock another version is put over each pack: ours is locked, and the backup restores."""
    bucket, prefix = seaweed.place(locks=True)
    content = secrets.token_bytes(3 * CHUNK)
    with closing(Raced(bucket, prefix, seaweed=seaweed)) as storage:
        with new_repository(storage, tmp_path / "one", passphrase="correct") as repository:
            promise(repository, timedelta(minutes=5), by="test")
            storage.armed = True
            kept = back_up(repository, content).backup
            storage.armed = False
        with (
            closing(S3Storage(bucket, prefix, connection=seaweed.connection())) as again,
            open_repository(again, passphrase="correct", cache_directory=tmp_path / "two") as repository,
        ):
            assert restored(repository, kept) == content


def test_a_lock_that_ended_hands_the_name_to_nobody(seaweed: Seaweed) -> None:
    """What was put over a locked object does not become the object when the lock ends, nor is it locked by us then."""
    bucket, prefix = seaweed.place(locks=True)
    with (
        closing(S3Storage(bucket, prefix, connection=seaweed.connection())) as ours,
        closing(S3Storage(bucket, prefix, connection=seaweed.connection())) as theirs,
    ):
        ours.upload("packs/x", b"ours")
        ours.lock("packs/x", datetime.now(UTC) + timedelta(seconds=3))
        theirs.upload("packs/x", b"theirs")
        wait_until(lambda: ours.locked_until("packs/x") is None, 20)
        for storage in (ours, theirs):
            assert storage.read("packs/x") == b"ours"
            assert [info.size for info in storage.list("packs")] == [4]
        ours.lock("packs/x", datetime.now(UTC) + timedelta(seconds=2))
        assert theirs.read("packs/x") == b"ours"
        wait_until(lambda: ours.locked_until("packs/x") is None, 20)
        ours.delete("packs/x")
        assert list(theirs.list("packs")) == []
        ours.upload("packs/x", b"new")
        assert theirs.read("packs/x") == b"new"


@pytest.mark.parametrize("place", [INDEX, "manifests", CONDEMNED, PACKS])
def test_what_another_customer_encrypted_is_damage_of_that_object(place: str, seaweed: Seaweed, tmp_path: Path) -> None:
    """An object that was put there under somebody else's key (SSE-C) cannot be read; all else can."""
    bucket, prefix = seaweed.place(locks=True)
    content = secrets.token_bytes(3 * CHUNK)

    def storage(encryption: Encryption | None = None) -> StorageBackend:
        return S3Storage(bucket, prefix, connection=seaweed.connection(), encryption=encryption)

    with new_repository(storage(), tmp_path / "one", passphrase="correct") as repository:
        promise(repository, timedelta(minutes=5), by="test")
        kept = back_up(repository, content).backup
    with closing(storage(Encryption(customer_key=secrets.token_bytes(32)))) as theirs:
        theirs.upload(planted_name(place, kept), b"junk")
    with open_repository(storage(), passphrase="correct", cache_directory=tmp_path / "two") as repository:
        assert restored(repository, kept) == content
        if place == "manifests":
            with pytest.raises(DamagedError):
                collect(repository)
            delete(repository, JUNK, now=True)
        collect(repository)
        assert back_up(repository, secrets.token_bytes(CHUNK)).backup


def test_a_storage_that_hands_out_nothing_is_not_damaged(tmp_path: Path) -> None:
    """Where no object can be read any more, it is the storage that refuses: nothing is called damaged, and nothing is removed."""

    class Refusing(MemoryStorage):
        refusing = False

        def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
            if self.refusing:
                raise StorageError("the server answered AccountProblem")
            return super().read(path, offset, length)

    storage = Refusing()
    with new_repository(storage, tmp_path, passphrase="correct") as repository:
        back_up(repository, secrets.token_bytes(3 * CHUNK))
        before = {info.path for info in storage.list()}
        storage.refusing = True
        with pytest.raises(StorageError, match="AccountProblem"):
            repository.get_object(Kind.INDEX, next(iter(storage.list(INDEX))).path)
        with pytest.raises((StorageError, RepositoryError)):
            collect(repository, grace=0, exclusive=True)
        assert {info.path for info in storage.list()} >= before


def test_what_is_passed_over_of_a_spent_backup_counts_for_no_other(tmp_path: Path) -> None:
    """A node that a backup deleted long ago, but locked, shares with a living one is gone for a while: nothing is removed, and the living one restores when it is back."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    content = secrets.token_bytes(200 * CHUNK)
    with new_repository(storage, tmp_path / "one", passphrase="correct") as repository:
        spent = back_up(repository, content).backup
        clock.now += timedelta(hours=1)
        kept = back_up(repository, content).backup
        delete(repository, spent)
        storage.lock(f"manifests/{spent}", clock.now + timedelta(days=3650))
        clock.now += timedelta(days=3)
    trees = {}
    with open_repository(storage, passphrase="correct", cache_directory=tmp_path / "two") as repository:
        for number, info in list(repository.cache.packs()):
            if info.kind == PackKind.TREE:
                assert number >= 0
                trees[info.path] = storage.read(info.path)
    for path in trees:
        storage.delete(path)
    for turn in range(3):
        clock.now += timedelta(days=3)
        with (
            open_repository(storage, passphrase="correct", cache_directory=tmp_path / f"turn{turn}") as repository,
            pytest.raises(DamagedError),
        ):
            collect(repository)
    for path, data in trees.items():
        storage.upload(path, data)
    with open_repository(storage, passphrase="correct", cache_directory=tmp_path / "three") as repository:
        assert restored(repository, kept) == content
