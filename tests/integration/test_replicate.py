"""Copies in another repository: the same bytes under other keys, at the cost of what changed, whatever happens on the way."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.extent import Extent
from lab_backup.operations.lifecycle import delete, protect
from lab_backup.operations.replicate import replicate
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.storage.base import StorageBackend
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB
from support.engine import CHUNK, back_up, copy_of, flip, new_repository, restored
from support.faulty import CrashError, CrashPoint, FaultyStorage

Pair = tuple[Repository, Repository]
"""Where the backups are, and where the copies go."""

CHUNKS = 200


@pytest.fixture(params=["like", "own ids", "own ids, larger chunks"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """Return two repositories with different keys: with the same ids, with ids of their own, with other chunks as well."""
    source = new_repository(MemoryStorage(), tmp_path / "one")
    size = 64 * KiB if "larger" in request.param else CHUNK
    identity = source.keys.identity if request.param == "like" else None
    return source, new_repository(MemoryStorage(), tmp_path / "two", chunk_size=size, identity=identity)


def data(seed: int) -> bytearray:
    """Return a disk with a hole and something at its end."""
    content = bytearray(random.Random(seed).randbytes(CHUNKS * CHUNK + 100))
    content[20 * CHUNK : 90 * CHUNK] = bytes(70 * CHUNK)
    return content


def test_copies_are_the_backups(pair: Pair) -> None:
    """Disks, files, times, ids and states are those of the originals; a second run copies nothing."""
    source, target = pair
    first = back_up(source, {"vda": bytes(data(1)), "vdb": b""}, files={"domain.xml": b"<domain/>"})
    changed = data(1)
    changed[3 * CHUNK : 4 * CHUNK] = bytes(CHUNK)
    changed[50 * CHUNK] = 7
    second = back_up(
        source, {"vda": bytes(changed), "vdb": b""}, changes=[Extent(3 * CHUNK, CHUNK), Extent(50 * CHUNK, CHUNK)]
    )
    gone = back_up(source, b"deleted", name="other")
    delete(source, gone.backup)
    protect(source, first.backup)
    result = replicate(source, target, read_back=True)
    assert [item.backup for item in result.copied] == [first.backup, second.backup]
    assert not result.failed
    assert restored(target, first.backup) == data(1)
    assert restored(target, second.backup) == changed
    copy = Backups(target).find(first.backup)
    assert copy.state.protected
    assert (copy.manifest.time, copy.manifest.source) == (
        first.time,
        Backups(source).find(first.backup).manifest.source,
    )
    assert copy.manifest.repository == target.config.id
    again = replicate(source, target)
    assert (again.copied, again.bytes_stored) == ((), 0)
    assert set(again.present) == {first.backup, second.backup}
    assert verify(target, read_data=True).corrupt == verify(target).missing == 0


def test_an_increment_costs_what_changed(pair: Pair) -> None:
    """One changed chunk is copied as one chunk and the nodes above it: hardly more is read and stored."""
    source, target = pair
    back_up(source, bytes(data(1)))
    replicate(source, target)
    changed = data(1)
    changed[5 * CHUNK : 6 * CHUNK] = random.Random(2).randbytes(CHUNK)
    back_up(source, bytes(changed), changes=[Extent(5 * CHUNK, CHUNK)])
    before = sum(info.size for info in target.storage.list("packs"))
    result = replicate(source, target)
    assert len(result.copied) == 1
    grown = sum(info.size for info in target.storage.list("packs")) - before
    assert CHUNK <= grown <= max(CHUNK, target.config.chunk_size) + 12 * KiB
    assert restored(target, result.copied[0].backup) == changed


@pytest.mark.parametrize(
    "choose", [lambda name: {"backups": [f"latest:vm/{name}"]}, lambda name: {"source_name": name}]
)
def test_some_of_them(pair: Pair, choose: Callable[[str], dict[str, object]]) -> None:
    """Only what was asked for is copied; a name that nothing has is an error."""
    source, target = pair
    back_up(source, b"a" * CHUNK, name="one")
    back_up(source, b"b" * CHUNK, name="two")
    replicate(source, target, **choose("two"))  # type: ignore[arg-type]  # one or the other
    assert [backup.manifest.source.name for backup in Backups(target).all()] == ["two"]
    with pytest.raises(NotFoundError):
        replicate(source, target, source_name="three")


def test_killed_on_the_way(pair: Pair, tmp_path: Path) -> None:
    """Death at every write leaves whole backups only, and the next run goes on, from this host or another."""
    source, target = pair
    contents = {back_up(source, bytes(data(seed)), name=str(seed)).backup: data(seed) for seed in (1, 2)}
    for write in itertools.count(1):
        storage = copy_of(target.storage)
        dying = FaultyStorage(storage, crash=CrashPoint(write))
        try:
            with opened(dying, tmp_path / f"{write}") as there:
                replicate(source, there)
            break
        except CrashError:
            pass
        with opened(storage, tmp_path / f"{write}-again") as there:
            assert verify(there, read_data=True).damage == ()
            present = {backup.id for backup in Backups(there).all()}
            result = replicate(source, there)
            assert set(result.present) == present
            for backup, content in contents.items():
                assert restored(there, backup) == content
    assert write > 8  # it did die at more than a few places


def opened(storage: StorageBackend, cache: Path) -> Repository:
    """Open a copy of a repository's storage as another host would."""
    return open_repository(storage, passphrase=None, cache_directory=cache)


def test_damage_stays_behind(pair: Pair) -> None:
    """A damaged backup is named and not copied, the others are; nothing wrong is stored anywhere."""
    source, target = pair
    bad = back_up(source, bytes(data(1)), name="bad")
    packs = [info for info in source.storage.list("packs") if info.size > CHUNK]
    good = back_up(source, bytes(data(2)), name="good")
    flip(source.storage, max(packs, key=lambda info: info.size).path, 5000)
    result = replicate(source, target)
    assert [(item.backup, item.damaged) for item in result.failed] == [(bad.backup, True)]
    assert [item.backup for item in result.copied] == [good.backup]
    assert [backup.id for backup in Backups(target).all()] == [good.backup]
    assert verify(target, read_data=True).damage == ()


@pytest.mark.parametrize("there", [False, True], ids=["missing", "there already"])
def test_lists_that_lie_stay_behind(pair: Pair, there: bool) -> None:  # noqa: FBT001  a parameter of the test
    """A backup whose list has a chunk of the wrong length cannot be restored: it is not copied either, also where the target has the chunk."""
    source, target = pair
    good = back_up(source, bytes(data(1)))
    if there:
        replicate(source, target)
    manifest = Backups(source).find(good.backup).manifest
    disk = msgspec.structs.replace(manifest.disks[0], size=manifest.disks[0].size - 50)
    forged = msgspec.structs.replace(manifest, backup=new_backup_id(), disks=(disk,))
    with BackupSession(source, forged.backup) as session:
        session.publish(forged)
    result = replicate(source, target)
    assert [(item.backup, item.damaged) for item in result.failed] == [(forged.backup, True)]
    assert [backup.id for backup in Backups(target).all()] == [good.backup]


def test_damage_in_the_copy_is_mended(pair: Pair) -> None:
    """What verification found damaged in the target is stored again when a later backup needs it."""
    source, target = pair
    back_up(source, bytes(data(1)))
    replicate(source, target)
    pack = max(target.storage.list("packs"), key=lambda info: info.size)
    flip(target.storage, pack.path, 5000)
    assert verify(target, read_data=True).corrupt
    later = back_up(source, bytes(data(1)), changes=[])
    target.synchronise()
    replicate(source, target)
    assert restored(target, later.backup) == data(1)


def test_not_into_itself(pair: Pair) -> None:
    """A repository is not copied into itself."""
    source, _ = pair
    with pytest.raises(UsageError, match="same repository"):
        replicate(source, source)
