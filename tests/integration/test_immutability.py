"""Backups that nobody can remove: everything they need is locked, for long enough, and no longer than is needed."""

import random
import secrets
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.extent import Extent
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, undelete
from lab_backup.operations.repositories import add_key, init_repository, list_keys, remove_key
from lab_backup.operations.repositories import open_repository as open_at
from lab_backup.operations.verify import verify
from lab_backup.repository import immutability
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backups
from lab_backup.repository.errors import DamagedError, ProtectedError, RepositoryError
from lab_backup.repository.immutability import IMMUTABILITY, Locks, head_objects, promise, promised
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import INDEX, Repository, open_repository
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import (
    ObjectLockedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageBackend,
    TransientStorageError,
)
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.s3.storage import S3Storage
from lab_backup.units import MiB
from support.engine import CHUNK, back_up, copy_of, new_repository, restored
from support.immutable import unlock_all
from support.program import Program
from support.seaweed import ADMIN, Seaweed
from support.waiting import wait_until

PERIOD = timedelta(days=30)
STEP = PERIOD / 4


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        """Begin somewhere."""
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


def needs(repository: Repository) -> set[str]:
    """Return the objects without which the backups that are not deleted could not be opened and restored."""
    reader = Reader(repository)
    found = {info.path for info in repository.storage.list(INDEX)} | set(head_objects(repository))
    for backup in Backups(repository).all():
        if backup.state.deleted is None:
            found.add(manifests.path(backup.id))
            for chunk_list in backup.manifest.lists:
                for blob in Walk(reader).blobs(chunk_list):
                    place = reader.find(blob.id)
                    assert place is not None
                    found.add(repository.cache.pack(place.pack).path)
    return found


def shortest(repository: Repository, storage: StorageBackend) -> datetime:
    """Return when the first of all needed locks ends."""
    return min(storage.locked_until(path) or datetime.min.replace(tzinfo=UTC) for path in needs(repository))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["full", "change", "delete", "undelete", "gc", "wait"]), st.integers(0, 10**6)),
        min_size=3,
        max_size=14,
    )
)
def test_what_backups_need_is_locked_for_the_whole_time(
    actions: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After each collection, and for what is new after each backup, every lock lasts for at least the period; between them, less by the time since."""
    clock, disk = Clock(), bytearray()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path_factory.mktemp("cache")) as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, secrets.token_bytes(3 * CHUNK), name="other")
        looked = clock.now
        for action, seed in actions:
            chooser = random.Random(seed)
            backups = [backup for backup in Backups(repository).all() if backup.state.deleted is None]
            before = needs(repository)
            if action == "full" or (action == "change" and not disk):
                disk = bytearray(chooser.randbytes(4 * CHUNK))
                back_up(repository, bytes(disk))
            elif action == "change":
                at = chooser.randrange(4) * CHUNK
                disk[at : at + CHUNK] = chooser.randbytes(CHUNK)
                back_up(repository, bytes(disk), changes=[Extent(at, CHUNK)])
            elif action == "delete" and len(backups) > 1:
                with suppress(ProtectedError):  # the last one before many changes is kept as the last good one
                    delete(repository, chooser.choice(backups).id)
            elif action == "undelete":
                with suppress(UsageError):
                    undelete(repository, chooser.choice(Backups(repository).all()).id)
            elif action == "wait":
                clock.now += min(timedelta(days=chooser.uniform(0, 7)), looked + STEP - clock.now)
            if action == "gc":
                collect(repository)
                looked = clock.now
                assert shortest(repository, storage) >= clock.now + PERIOD
            for path in needs(repository) - before if action in {"full", "change"} else ():
                until = storage.locked_until(path)
                assert until is not None
                assert until >= clock.now + PERIOD
            assert shortest(repository, storage) >= clock.now + PERIOD - (clock.now - looked)


def test_nobody_can_take_them_away(tmp_path: Path) -> None:
    """Somebody with all rights to the storage but without a key removes and replaces whatever he can: everything restores."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    content = secrets.token_bytes(9 * CHUNK)
    with new_repository(storage, tmp_path / "one", passphrase="correct") as repository:
        promise(repository, PERIOD, by="test")
        backup = back_up(repository, content, files={"domain.xml": b"<domain/>"}).backup
    clock.now += PERIOD - timedelta(minutes=1)
    for info in list(storage.list()):
        with suppress(ObjectLockedError):
            storage.delete(info.path)
        with suppress(ObjectLockedError):
            storage.upload(info.path, b"encrypted by malware")
    with open_repository(storage, passphrase="correct", cache_directory=tmp_path / "two") as repository:
        assert restored(repository, backup) == content
        assert promised(repository) == PERIOD
        report = verify(repository, [backup], read_data=True)
        assert (report.corrupt, report.missing) == (0, 0)


def test_what_is_deleted_goes_when_its_lock_ends(tmp_path: Path) -> None:
    """`delete` marks, `delete --now` refuses, `gc` passes over and says until when; after that it removes, and nothing is left."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path) as repository:
        promise(repository, PERIOD, by="test")
        kept = back_up(repository, secrets.token_bytes(5 * CHUNK), name="kept").backup
        gone = back_up(repository, secrets.token_bytes(5 * CHUNK), name="gone").backup
        until = storage.locked_until(manifests.path(gone))
        with pytest.raises(ObjectLockedError, match="is locked until") as refused:
            delete(repository, gone, now=True)
        assert refused.value.until == until
        assert "without --now" in str(refused.value.hint)
        assert Backups(repository).find(gone).state.deleted is None
        assert delete(repository, gone).locked_until == until
        clock.now += timedelta(days=3)
        for dry_run in (True, False):
            result = collect(repository, dry_run=dry_run)
            assert (result.backups_removed, result.objects_locked, result.locked_until) == ([], 1, until)
        assert Backups(repository).exists(gone)
        assert collect(repository, grace=0, exclusive=True).backups_removed == []
        days = 0
        while len(list(storage.list("packs"))) > 2:
            assert days <= PERIOD.days + STEP.days + 8  # its locks were not prolonged once it was deleted
            clock.now += timedelta(days=2)
            days += 2
            collect(repository)
        assert not Backups(repository).exists(gone)
        assert len(list(storage.list("packs"))) == 2  # of chunks and of tree nodes, those of `kept`
        assert shortest(repository, storage) >= clock.now + PERIOD - timedelta(days=2)
        assert kept in [backup.id for backup in Backups(repository).all()]


def test_a_lock_laid_in_the_last_moment_is_respected(tmp_path: Path) -> None:
    """Somebody locks the manifest between the look and the removal: the backup stays whole, is counted, and is not said to be removed."""
    clock = Clock()

    class Late(MemoryStorage):
        def locked_until(self, path: str) -> datetime | None:
            known = super().locked_until(path)
            if path.startswith("manifests/") and known is None:
                self.lock(path, clock.now + timedelta(days=1))
            return known

    storage = Late(clock=clock)
    content = secrets.token_bytes(3 * CHUNK)
    with new_repository(storage, tmp_path) as repository:
        backup = back_up(repository, content).backup
        delete(repository, backup)
        clock.now += timedelta(days=3)
        result = collect(repository)
        assert (result.backups_removed, result.objects_locked) == ([], 1)
        assert restored(repository, backup) == content


def test_an_exclusive_collection_passes_over_what_is_locked(tmp_path: Path) -> None:
    """Garbage that is locked stays, is counted, and is removed once the lock has ended."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path) as repository:
        back_up(repository, secrets.token_bytes(3 * CHUNK))
        promise(repository, PERIOD, by="test")
        lost = back_up(repository, secrets.token_bytes(3 * CHUNK), name="lost").backup
        clock.now += PERIOD + STEP + timedelta(days=1)
        delete(repository, lost, now=True)
        packs = {info.path for info in storage.list("packs")}
        for path in packs:
            storage.lock(path, clock.now + timedelta(days=1))
        first = collect(repository, grace=0, exclusive=True)
        assert first.packs_removed == 0
        assert (first.objects_locked, first.locked_until) == (2, clock.now + timedelta(days=1))
        assert first.bytes_locked > 0
        assert {info.path for info in storage.list("packs")} == packs
        promise(repository, timedelta(), by="test")
        clock.now += timedelta(days=90)
        second = collect(repository, grace=0, exclusive=True)
        assert (second.packs_removed, second.objects_locked, second.locked_until) == (2, 0, None)


def test_copies_that_a_collection_makes_are_locked(tmp_path: Path) -> None:
    """What backups need is moved out of packs that are mostly garbage: the copies, and the index that names them, are locked at once."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    content = secrets.token_bytes(8 * CHUNK)
    with new_repository(storage, tmp_path) as repository:
        gone = back_up(repository, content, name="gone").backup
        kept = back_up(repository, content[:CHUNK], name="kept").backup
        delete(repository, gone)
        clock.now += timedelta(days=3)
        before = {info.path for info in storage.list()}
        promise(repository, PERIOD, by="test")
        assert collect(repository).packs_repacked > 0
        made = {info.path for info in storage.list() if info.path.startswith(("packs/", "index/"))} - before
        assert {path.partition("/")[0] for path in made} == {"packs", "index"}
        assert all((storage.locked_until(path) or clock.now) >= clock.now + PERIOD for path in made)
        assert restored(repository, kept) == content[:CHUNK]


def test_the_last_statement_counts(tmp_path: Path) -> None:
    """The promise can be changed and taken back; an old statement does not come back, also when somebody writes it anew, and what cannot be read is not taken for none."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path) as repository:
        assert promised(repository) == timedelta()
        for days in (30, 7, 0, 3):
            clock.now += timedelta(minutes=1)
            promise(repository, timedelta(days=days), by="test")
            assert promised(repository) == timedelta(days=days)
        assert len(list(storage.list(IMMUTABILITY))) >= 2
        with pytest.raises(UsageError, match="cannot be locked for"):
            promise(repository, timedelta(days=10**5), by="test")
        counts = storage.read(max(storage.list(IMMUTABILITY), key=lambda info: info.modified).path)
    replayed = copy_of(storage)
    with open_repository(replayed, passphrase=None, cache_directory=tmp_path / "three") as repository:
        old = [info.path for info in replayed.list(IMMUTABILITY) if replayed.read(info.path) != counts]
        assert old
        for path in old:
            replayed.upload(path, replayed.read(path))
        assert promised(repository) == timedelta(days=3)
    spoiled = copy_of(storage)
    for info in list(spoiled.list(IMMUTABILITY)):
        spoiled.upload(info.path, b"spoiled")
    with open_repository(spoiled, passphrase=None, cache_directory=tmp_path / "two") as repository:
        with pytest.raises(DamagedError, match="cannot be read how long"):
            back_up(repository, b"data")
        promise(repository, timedelta(days=1), by="test")
        back_up(repository, b"data")


def test_locking_costs_what_changed(tmp_path: Path) -> None:
    """A small increment on a large disk locks what is new, and asks nothing about the rest; the next collection neither."""
    clock = Clock()

    class Counting(MemoryStorage):
        asked: list[str] = []  # noqa: RUF012  of the one object that there is

        def lock(self, path: str, until: datetime) -> None:
            self.asked.append(path)
            super().lock(path, until)

    storage = Counting(clock=clock)
    disk = bytearray(secrets.token_bytes(4 * MiB))
    with new_repository(storage, tmp_path) as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, bytes(disk))
        collect(repository)
        storage.asked.clear()
        clock.now += timedelta(days=1)
        disk[:CHUNK] = secrets.token_bytes(CHUNK)
        back_up(repository, bytes(disk), changes=[Extent(0, CHUNK)])
        assert sorted(path.partition("/")[0] for path in storage.asked) == ["index", "manifests", "packs", "packs"]
        storage.asked.clear()
        assert collect(repository).objects_prolonged == 0
        assert storage.asked == []
        clock.now += STEP
        assert collect(repository).objects_prolonged > 0


def test_a_storage_that_cannot_lock_is_refused(tmp_path: Path) -> None:
    """The promise is not given where it cannot be kept; where it was given, no backup is made without it."""

    class NoLocks(MemoryStorage):
        locks = False

    with new_repository(NoLocks(), tmp_path) as repository, pytest.raises(UsageError, match="cannot lock"):
        promise(repository, PERIOD, by="test")
    storage = MemoryStorage()
    with new_repository(storage, tmp_path / "two") as repository:
        promise(repository, PERIOD, by="test")
        repository.storage = NoLocks()
        for info in storage.list():
            repository.storage.upload(info.path, storage.read(info.path))
        with pytest.raises(RepositoryError, match="promises to lock"):
            back_up(repository, b"data")
        assert list(repository.storage.list("manifests")) == []


def _needed_by(backup: str, repository: Repository) -> set[str]:
    """Return the objects that a backup needs, by their own names."""
    reader = Reader(repository)
    manifest = Backups(repository).find(backup).manifest
    blobs = [blob.id for chunk_list in manifest.lists for blob in Walk(reader).blobs(chunk_list)]
    places = [place for identity in blobs if (place := reader.find(identity)) is not None]
    return {manifests.path(backup), *(repository.cache.pack(place.pack).path for place in places)}


@pytest.mark.parametrize("spoiled", ["manifests/" + "a" * 32, f"{IMMUTABILITY}/" + "b" * 32])
def test_a_spoiled_object_does_not_let_locks_run_out(spoiled: str, tmp_path: Path) -> None:
    """Somebody puts junk where a collection must read: it refuses, as it has to, but what backups need is prolonged all the same."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    content = secrets.token_bytes(4 * CHUNK)
    with new_repository(storage, tmp_path) as repository:
        promise(repository, PERIOD, by="test")
        kept = back_up(repository, content).backup
        needed = _needed_by(kept, repository) | set(head_objects(repository))
        clock.now += timedelta(minutes=1)
        storage.upload(spoiled, b"junk")
        storage.lock(spoiled, clock.now + timedelta(days=3650))  # so that nobody can clear it away
        for _ in range(30):
            clock.now += timedelta(days=3)
            with pytest.raises(DamagedError):
                collect(repository)
            assert all((storage.locked_until(path) or clock.now) >= clock.now + PERIOD for path in needed)
        assert restored(repository, kept) == content


def test_what_is_known_of_locks_is_looked_at(tmp_path: Path) -> None:
    """A config that was written anew, and a storage that was copied without its locks, are locked again by the next collection."""
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    with new_repository(storage, tmp_path) as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, secrets.token_bytes(4 * CHUNK))
        collect(repository)
        storage._locks.pop("config")
        assert any("not" in note for note in collect(repository).notes)
        assert shortest(repository, storage) >= clock.now + PERIOD
        assert collect(repository).notes == []
        storage._locks.clear()
        collect(repository)
        assert shortest(repository, storage) >= clock.now + PERIOD


def test_what_vanishes_while_locks_are_prolonged_is_passed_over(tmp_path: Path) -> None:
    """Another collection removes an index object between our list and our lock: ours goes on."""

    class Vanishing(MemoryStorage):
        victim = ""

        def lock(self, path: str, until: datetime) -> None:
            if path == self.victim:
                raise ObjectNotFoundError(path)
            super().lock(path, until)

    clock = Clock()
    storage = Vanishing(clock=clock)
    with new_repository(storage, tmp_path) as repository:
        promise(repository, PERIOD, by="test")
        back_up(repository, secrets.token_bytes(4 * CHUNK))
        clock.now += STEP + timedelta(days=1)
        storage.victim = next(info.path for info in storage.list(INDEX))
        assert collect(repository).objects_prolonged > 3


def test_nothing_is_promised_that_cannot_be_kept(tmp_path: Path) -> None:
    """Where the key of the storage may not lock, the promise fails and is not given; backups go on without it."""

    class Refusing(MemoryStorage):
        def lock(self, path: str, until: datetime) -> None:
            raise StorageAccessError(f"no right to lock {path} until {until}")

    with new_repository(Refusing(), tmp_path) as repository:
        with pytest.raises(StorageAccessError):
            promise(repository, PERIOD, by="test")
        assert promised(repository) == timedelta()
        back_up(repository, b"data")


def test_an_interrupted_round_is_not_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was locked before something failed is remembered, part by part."""
    monkeypatch.setattr(immutability, "_PART", 4)
    storage = MemoryStorage()
    asked: list[str] = []
    real = storage.lock

    def lock(path: str, until: datetime) -> None:
        asked.append(path)
        if len(asked) == 10:
            raise TransientStorageError("away")
        real(path, until)

    with new_repository(storage, tmp_path) as repository:
        paths = [f"packs/aa/{number:032x}" for number in range(20)]
        for path in paths:
            storage.upload(path, b"x")
        monkeypatch.setattr(storage, "lock", lock)
        locks = Locks(repository, PERIOD)
        with pytest.raises(TransientStorageError):
            locks.extend(paths, now=repository.clock())
        asked.clear()
        asked.extend(["done"] * 100)
        assert locks.extend(paths, now=repository.clock()) == 12


def test_a_locked_key_stays(tmp_path: Path) -> None:
    """A passphrase that is locked cannot be removed, and the message says how to get rid of it."""
    storage = MemoryStorage()
    with new_repository(storage, tmp_path, passphrase="one") as repository:
        key = add_key(repository, "two", label="second", kdf="scrypt")
        promise(repository, PERIOD, by="test")
        with pytest.raises(ObjectLockedError) as refused:
            remove_key(repository, key.id)
        assert "repo immutable off" in str(refused.value.hint)
        assert len(list_keys(repository)) == 2


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Return the address of an empty place that locks, and what the environment must say: a folder, or a bucket."""
    if request.param == "local":
        yield str(tmp_path / "repository"), {}
        unlock_all(tmp_path)
        return
    server: Seaweed = request.getfixturevalue("seaweed")
    bucket, prefix = server.place(locks=True)
    keys = {"AWS_ACCESS_KEY_ID": ADMIN.access_key, "AWS_SECRET_ACCESS_KEY": ADMIN.secret_key}
    yield f"s3://{bucket}/{prefix}?endpoint={server.endpoint}&lock-mode=compliance", keys


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_by_the_command_line(place: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """On real storages: the promise, a backup, refused deletions with their date, a collection that passes over it, and one after the end."""
    url, environment = place
    lab = Program(tmp_path, LAB_BACKUP_REPO=url, **environment)
    image = tmp_path / "disk.raw"
    image.write_bytes(secrets.token_bytes(2 * MiB))
    assert lab("repo", "init", url, "--no-encryption", "--immutable", "0s").code == 2
    assert lab.ok("repo", "init", url, "--no-encryption", "--immutable", "2h")["locked_for"] == 7200
    assert lab.ok("repo", "immutable", "1h")["locked_for"] == 3600
    assert lab.ok("repo", "info")["locked_for"] == 3600
    begun = datetime.now(UTC)
    backup = lab.ok("backup", "image", image)["backup"]
    refused = lab("delete", backup, "--now")
    assert refused.code == 1, refused
    assert "is locked until" in refused.stderr
    assert "Traceback" not in refused.stderr
    answer = lab.ok("delete", backup)
    assert datetime.fromisoformat(answer["locked_until"]) > begun
    passed = lab.ok("gc", "--grace", "0", "--exclusive")
    assert (passed["backups_removed"], passed["objects_locked"]) == ([], 1)
    lab.ok("repo", "immutable", "off")
    if not url.startswith("s3:"):
        unlock_all(
            tmp_path, ended=True
        )  # nobody but the clock ends a lock in a bucket; the storages' contract waits for that
        assert lab.ok("gc", "--grace", "0", "--exclusive")["backups_removed"] == [backup]
        assert lab.ok("list")["backups"] == []


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_what_was_locked_goes_when_its_time_is_over(
    place: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real storages, with locks of seconds: a collection passes over the deleted backup, then the clock moves on, and the next one removes it all."""
    url, environment = place
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    init_repository(url, passphrase=None, encryption=False, locked_for=8)
    with open_at(url, passphrase=None, cache_directory=tmp_path / "cache") as repository:
        storage = repository.storage
        backup = back_up(repository, secrets.token_bytes(3 * CHUNK)).backup
        until = delete(repository, backup).locked_until
        assert until is not None
        passed = collect(repository, grace=0, exclusive=True)
        assert (passed.backups_removed, passed.locked_until) == ([], until)
        wait_until(lambda: all(storage.locked_until(info.path) is None for info in storage.list("packs")), 40)
        wait_until(lambda: storage.locked_until(manifests.path(backup)) is None, 40)
        assert collect(repository, grace=0, exclusive=True).backups_removed == [backup]
        assert list(storage.list("packs")) == []
        assert list(storage.list("manifests")) == []


def test_on_s3_every_object_is_locked(seaweed: Seaweed, tmp_path: Path) -> None:
    """In a bucket, packs, index, manifest, keys, config and its copy cannot be deleted by anybody before their time."""
    bucket, prefix = seaweed.place(locks=True)
    with closing(S3Storage(bucket, prefix, connection=seaweed.connection())) as storage:
        with new_repository(storage, tmp_path, passphrase="correct") as repository:
            promise(repository, timedelta(minutes=10), by="test")
            back_up(repository, secrets.token_bytes(3 * CHUNK))
        locked = {info.path for info in storage.list() if storage.locked_until(info.path) is not None}
        assert {path.partition("/")[0] for path in locked} >= {
            "packs", "index", "manifests", "keys", "config", "config.copy", IMMUTABILITY,
        }  # fmt: skip
        for path in locked:
            with pytest.raises(ObjectLockedError):
                storage.delete(path)
