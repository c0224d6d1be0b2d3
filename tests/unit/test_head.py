"""The object `config` and its copy: either opens the repository, and neither is a way around the passphrase."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.operations.catalogue import list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.verify import verify
from lab_backup.repository import keys as keys_module
from lab_backup.repository.config import COPY, PATH, Config
from lab_backup.repository.create import create_repository
from lab_backup.repository.errors import (
    DamagedError,
    NewerVersionError,
    NotARepositoryError,
    RepositoryExistsError,
    WrongKeyError,
)
from lab_backup.repository.head import read_head
from lab_backup.repository.keys import RepositoryKeys, passphrase_slot, plain_slot
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.storage.base import StorageAccessError
from lab_backup.storage.memory import MemoryStorage
from support.engine import back_up, copy_of, flip, restored
from support.faulty import FaultyStorage

DISK = random.Random(1).randbytes(50_000)
BOTH = (PATH, COPY)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passphrases cost no time to try."""
    monkeypatch.setattr(keys_module, "MEMORY_KIB", 32)
    monkeypatch.setattr(keys_module, "ITERATIONS", 1)


@pytest.fixture
def storage(tmp_path: Path) -> MemoryStorage:
    """Return an encrypted repository with one backup."""
    storage = MemoryStorage()
    create_repository(storage, passphrase="ours")
    with opened(storage, tmp_path) as repository:
        back_up(repository, DISK)
    return storage


@pytest.fixture(params=[PATH, COPY])
def path(request: pytest.FixtureRequest) -> str:
    """Return the one of the two that something happens to."""
    chosen: str = request.param
    return chosen


def opened(storage: MemoryStorage | FaultyStorage, cache: Path, key: str | None = "ours") -> Repository:
    """Open the repository."""
    return open_repository(storage, passphrase=key, cache_directory=cache)


def damages(data: bytes) -> Iterator[bytes | None]:
    """Yield what may become of a config: lost, emptied, cut off, overwritten, of another format, changed, with a wrong version."""
    fields = json.loads(data)
    yield from (None, b"", data[:100], b"\0" * len(data), b"[]", b'{"format": "git"}')
    for change in ({"grace": 1}, {"version": 9}, {"version": "x"}, {"chunk_size": 3}, {"seal": ""}, {"id": "0" * 32}):
        yield json.dumps(fields | change).encode()


def test_either_suffices(storage: MemoryStorage, path: str, tmp_path: Path) -> None:
    """Whatever happens to one of them, passphrase and recovery key open; verification names it, and a collection mends it."""
    with opened(storage, tmp_path) as repository:
        recovery, sound = repository.keys.recovery_key(), repository.config.encode()
    for number, data in enumerate(damages(storage.read(path))):
        harmed = copy_of(storage)
        if data is None:
            harmed.delete(path)
        else:
            harmed.upload(path, data)
        for secret in ("ours", recovery):
            with opened(harmed, tmp_path, secret) as repository:
                backup = list_backups(repository).backups[0].backup
                assert restored(repository, backup) == DISK
                damage = verify(repository).damage
                assert [(found.touches, found.missing) for found in damage] == [((path,), data is None)]
        with pytest.raises(WrongKeyError):
            opened(harmed, tmp_path, "wrong")
        with opened(harmed, tmp_path / str(number)) as repository:
            assert collect(repository).notes
            assert not verify(repository).damage
        assert [harmed.read(name) for name in BOTH] == [sound, sound]


def test_a_repository_from_before_there_were_copies(storage: MemoryStorage, tmp_path: Path) -> None:
    """One without the copy opens; a dry run leaves it so, and the next backup adds it."""
    storage.delete(COPY)
    with opened(storage, tmp_path) as repository:
        collect(repository, dry_run=True)
        assert COPY not in {info.path for info in storage.list()}
        back_up(repository, DISK)
    assert storage.read(COPY) == storage.read(PATH)


def test_a_storage_that_lets_nothing_be_replaced(storage: MemoryStorage, tmp_path: Path) -> None:
    """A backup is made all the same where a damaged config cannot be mended, and the damage stays reported."""
    flip(storage, PATH, 200)

    class Frozen(FaultyStorage):
        def upload(self, path: str, data: object, metadata: object = None) -> None:
            if path == PATH:
                raise StorageAccessError("no object may be replaced")
            super().upload(path, data, metadata)  # type: ignore[arg-type] # whatever the caller gave

    with opened(Frozen(storage), tmp_path) as repository:
        back_up(repository, DISK)
        assert verify(repository).damage


def forged(his: RepositoryKeys, config: Config, encryption: str) -> bytes:
    """Return a config that is like ours, but sealed by somebody else's keys."""
    fields = {name: getattr(config, name) for name in Config.__struct_fields__} | {"encryption": encryption}
    return Config(**fields).sealed(his.metadata).encode()


@pytest.mark.parametrize("names", [(PATH,), (COPY,), BOTH], ids="+".join)
@pytest.mark.parametrize("encryption", ["none", "aes-256-gcm"])
@pytest.mark.parametrize("others", ["stay", "go"])
def test_planted_configs(
    storage: MemoryStorage, tmp_path: Path, names: tuple[str, ...], encryption: str, others: str
) -> None:
    """Who writes the storage but has no key plants a config of his own: a reader with the passphrase or the sheet sees ours, or an error."""
    with opened(storage, tmp_path) as repository:
        config, recovery = repository.config, repository.keys.recovery_key()
    his = RepositoryKeys.generate()
    for slot in (
        plain_slot(his, created="2000-01-01T00:00:00Z"),
        passphrase_slot(his, "his", config.id, label="", created="2000-01-01T00:00:00Z"),
    ):
        storage.upload(f"keys/{slot.id}", msgspec.json.encode(slot))
    for name in BOTH:
        if name in names:
            storage.upload(name, forged(his, config, encryption))
        elif others == "go":
            storage.delete(name)
    ours_is_there = others == "stay" and names != BOTH
    for secret in ("ours", recovery):
        if ours_is_there:
            with opened(storage, tmp_path, secret) as repository:
                assert repository.keys.recovery_key() == recovery
        else:
            with pytest.raises((DamagedError, WrongKeyError)):
                opened(storage, tmp_path, secret)
    # Without any secret his repository opens only where nothing says any more that ours was encrypted.
    assert read_head(storage).encrypted == (ours_is_there or encryption != "none")
    if ours_is_there or encryption != "none":
        with pytest.raises(WrongKeyError, match="is encrypted"):
            opened(storage, tmp_path, None)


def test_a_newer_version_is_believed_in_either(storage: MemoryStorage, path: str, tmp_path: Path) -> None:
    """Where one of them was rewritten by a newer version, this one stays away, also if the other is still old."""
    fields = json.loads(storage.read(path))
    storage.upload(path, json.dumps(fields | {"version": 2, "seal": "0" * 64, "more": True}).encode())
    with pytest.raises(NewerVersionError):
        opened(storage, tmp_path)


def test_both_damaged_or_lost(storage: MemoryStorage, tmp_path: Path) -> None:
    """Then the error says what is wrong, and nobody is told to make a new repository over the old one."""
    damaged = copy_of(storage)
    for name in BOTH:
        damaged.upload(name, storage.read(name).replace(b'"zstd:3"', b'"lz4"'))
    with pytest.raises(DamagedError):
        opened(damaged, tmp_path)
    for name in BOTH:
        storage.delete(name)
    with pytest.raises(NotARepositoryError) as lost:
        opened(storage, tmp_path)
    assert "are gone" in str(lost.value)
    assert "init" not in str(lost.value.hint)
    with pytest.raises(NotARepositoryError) as never:
        opened(MemoryStorage(), tmp_path)
    assert "mounted" in str(never.value.hint)


@pytest.mark.parametrize("gone", [(PATH,), BOTH], ids="+".join)
def test_no_repository_is_made_over_one_without_config(storage: MemoryStorage, gone: tuple[str, ...]) -> None:
    """What is left of a repository is never taken for an empty place, nor for a making that was interrupted."""
    for name in gone:
        storage.delete(name)
    before = sorted(storage.list())
    with pytest.raises(RepositoryExistsError):
        create_repository(storage, passphrase="new")
    assert sorted(storage.list()) == before


def test_the_loser_of_a_race_without_atomic_creation_withdraws() -> None:
    """Where a storage lets two makers write `config`, the one whose config did not stay says so and leaves no key behind."""

    class Racing(MemoryStorage):
        """The other maker's config replaces ours just after it was written."""

        def create(self, path: str, data: object) -> None:
            super().create(path, data)  # type: ignore[arg-type] # whatever the caller gave
            if path == PATH:
                other = MemoryStorage()
                create_repository(other, passphrase=None)
                self.upload(PATH, other.read(PATH))
                self.upload("keys/0123456789abcdef", b"his")

    storage = Racing()
    with pytest.raises(RepositoryExistsError):
        create_repository(storage, passphrase=None)
    assert {info.path for info in storage.list()} == {PATH, "keys/0123456789abcdef"}


def test_what_is_left_of_a_making_is_named() -> None:
    """Keys and the reserve alone are what a killed `init` leaves."""
    storage = MemoryStorage()
    storage.upload("reserve", b"x")
    with pytest.raises(UsageError, match="interrupted"):
        create_repository(storage, passphrase=None)
    storage.upload("photos/cat", b"meow")
    with pytest.raises(LabBackupError, match="not empty"):
        create_repository(storage, passphrase=None)
