"""Finding and marking backups: what a name may mean, and what holds after marks of all kinds."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_backup.errors import AmbiguousError, UsageError
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backups
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import BackupNotFoundError, DamagedError
from lab_backup.repository.manifest import Manifest, SourceInfo
from lab_backup.repository.marks import MarkKind, Verification
from lab_backup.repository.repository import Repository
from lab_backup.storage.memory import MemoryStorage
from support.engine import flip, new_repository, reopen

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an empty repository, whose storage says that it is noon."""
    with new_repository(MemoryStorage(clock=lambda: NOON), tmp_path) as made:
        yield made


def publish(
    repository: Repository,
    backup_id: str,
    *,
    minute: int = 0,
    kind: str = "vm",
    name: str = "web",
    source: str = "uuid-1",
) -> str:
    """Publish a backup without disks, made so many minutes before noon."""
    manifest = Manifest(
        version=1,
        backup=backup_id,
        repository=repository.config.id,
        time=(NOON - timedelta(minutes=minute)).isoformat(),
        source=SourceInfo(kind=kind, id=source, name=name),
        kind="full",
        consistency="crash",
    )
    path = manifests.path(backup_id)
    repository.put_object(Kind.MANIFEST, path, manifests.encode(manifest))
    return backup_id


A, B, C = "aaaa" + "0" * 28, "aaab" + "0" * 28, "bbbb" + "0" * 28


def test_oldest_first(repository: Repository) -> None:
    """Backups are in the order of their times, equal ones in that of their ids; a clock that is ahead counts as noon."""
    publish(repository, C, minute=5)
    publish(repository, B, minute=7)
    publish(repository, A, minute=5)
    ahead = publish(repository, "0" * 32, minute=-600)
    now = publish(repository, "1" * 32)
    assert [backup.id for backup in Backups(repository).all()] == [B, A, C, ahead, now]
    latest = Backups(repository).latest("vm", "uuid-1")
    assert latest is not None
    assert latest.id == now


def test_prefixes(repository: Repository) -> None:
    """A unique prefix of four characters names a backup, an ambiguous one lists those it fits, a wrong one none."""
    publish(repository, A)
    publish(repository, B)
    backups = Backups(repository)
    assert backups.find(A).id == backups.find("aaaa").id == A
    with pytest.raises(BackupNotFoundError):
        backups.find("bbbb")
    for spec in ("aaa", "", "AAAA", "../aaaa", "aaaa*", "aaaa\n", A + "0"):
        with pytest.raises(UsageError):
            backups.find(spec)
    publish(repository, "aaaa" + "1" * 28)
    with pytest.raises(AmbiguousError, match=A):
        backups.find("aaaa")
    assert backups.find(A).id == A


def test_prefix_of_a_damaged_one(repository: Repository) -> None:
    """A prefix that fits a readable and a damaged backup is ambiguous; the damaged one alone is named as such."""
    publish(repository, A)
    damaged = publish(repository, "aaaa" + "1" * 28)
    flip(repository.storage, manifests.path(damaged), 70)
    backups = Backups(repository)
    with pytest.raises(AmbiguousError):
        backups.find("aaaa")
    with pytest.raises(DamagedError):
        backups.find("aaaa1")
    assert backups.find("aaaa0").id == A


def test_latest(repository: Repository) -> None:
    """`latest:` means the newest that is not deleted, by name, by kind and name, or by id; two sources of one name are ambiguous."""
    publish(repository, A, minute=9)
    publish(repository, B, minute=5)
    publish(repository, C, minute=3, name="db", source="uuid-2")
    backups = Backups(repository)
    for spec in ("latest:web", "latest:vm/web", "latest:uuid-1", "latest:vm/uuid-1"):
        assert backups.find(spec).id == B
    assert backups.find("latest:db").id == C
    for spec in ("latest:", "latest:image/web", "latest:nothing", "latest:vm/", "latest:vm"):
        with pytest.raises(BackupNotFoundError):
            backups.find(spec)
    backups.mark(B, "deleted", value=True, time="t")
    assert backups.find("latest:web").id == A
    again = publish(repository, "c" * 32, minute=1, source="uuid-3")
    with pytest.raises(AmbiguousError, match="latest:vm/uuid-3"):
        backups.find("latest:web")
    assert backups.find("latest:vm/uuid-3").id == again
    image = publish(repository, "d" * 32, minute=1, kind="image", name="db", source="image:db")
    assert backups.find("latest:image/db").id == image
    assert backups.find("latest:vm/db").id == C


def test_name_with_a_slash(repository: Repository) -> None:
    """A source whose name looks like a kind and a name is found by its whole name."""
    publish(repository, A, kind="image", name="vm/web", source="image:vm/web")
    assert Backups(repository).find("latest:vm/web").id == A
    publish(repository, B)
    with pytest.raises(AmbiguousError):
        Backups(repository).find("latest:vm/web")
    assert Backups(repository).find("latest:image/vm/web").id == A


def test_marks(repository: Repository, tmp_path: Path) -> None:
    """Of each kind the last mark holds, seen by every host at once, and only that one stays in the storage."""
    publish(repository, A)
    backups = Backups(repository)
    outcome = Verification(time="t", level="full", ok=True)
    steps: list[tuple[MarkKind, bool | list[str] | Verification]] = [
        ("protected", True),
        ("tags", ["a"]),
        ("protected", False),
        ("verified", outcome),
        ("tags", ["b", "c"]),
        ("deleted", True),
    ]
    for kind, value in steps:
        assert backups.mark(A, kind, value, time="t", by="me") == NOON
    with reopen(repository, tmp_path / "other") as other:
        for each in (backups, Backups(other)):
            state = each.find(A).state
            assert (state.protected, state.tags, state.verified, state.deleted) == (False, ("b", "c"), outcome, NOON)
    assert len(list(repository.storage.list("marks"))) == 4


def test_damaged_mark(repository: Repository) -> None:
    """A damaged mark is told, and the others of its backup hold."""
    publish(repository, A)
    backups = Backups(repository)
    backups.mark(A, "protected", value=True, time="t")
    backups.mark(A, "tags", ["x"], time="t")
    paths = sorted(info.path for info in repository.storage.list("marks"))
    flip(repository.storage, paths[1], -1)
    state = Backups(repository).find(A).state
    assert state.protected
    assert state.tags == ()
    assert [stored.path for stored in backups.marks(A)] == paths[:1]
    assert backups.all()
    assert list(backups.damaged) == paths[1:]


def test_removal(repository: Repository) -> None:
    """A removed backup is gone with its marks, a second removal does nothing, others stay."""
    publish(repository, A)
    publish(repository, B)
    backups = Backups(repository)
    backups.mark(A, "protected", value=True, time="t")
    backups.mark(B, "tags", ["x"], time="t")
    assert backups.exists(A)
    for _ in range(2):
        backups.remove(A)
        assert not backups.exists(A)
        assert [backup.id for backup in backups.all()] == [B]
        assert [info.path.split("/")[1] for info in repository.storage.list("marks")] == [B]
