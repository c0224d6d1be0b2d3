"""Pruning a repository: marks that can be taken back, source by source, with reasons."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.operations import prune as prune_module
from lab_backup.operations.lifecycle import delete, protect, undelete
from lab_backup.operations.prune import prune
from lab_backup.policy.retention import Retention
from lab_backup.repository.backups import Backups
from lab_backup.repository.marks import fold
from lab_backup.repository.repository import Repository
from lab_backup.storage.memory import MemoryStorage
from support.engine import back_up, new_repository, restored


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return a repository in memory."""
    with new_repository(MemoryStorage(), tmp_path) as opened:
        yield opened


def deleted(repository: Repository) -> set[str]:
    """Return the ids of the backups that are marked."""
    return {backup.id for backup in Backups(repository).all() if backup.state.deleted is not None}


def test_each_source_by_itself(repository: Repository) -> None:
    """Each source keeps its own newest; the rest is marked, can be restored until it is collected, and be taken back."""
    web = [back_up(repository, bytes([number]) * 9, name="web").backup for number in range(3)]
    mail = [back_up(repository, bytes([number]) * 9, name="mail").backup for number in range(2)]
    told = prune(repository, Retention(last=1), dry_run=True)
    assert (told.kept, told.removed, deleted(repository)) == (2, 3, set())
    done = prune(repository, Retention(last=1))
    assert {item.backup for item in done.decisions if not item.keep} == deleted(repository) == {*web[:2], mail[0]}
    assert restored(repository, web[0]) == bytes(9)
    undelete(repository, web[0])
    assert deleted(repository) == {web[1], mail[0]}


def test_one_source(repository: Repository) -> None:
    """Only the named source is touched; a name that nothing has is an error."""
    web = [back_up(repository, b"a", name="web").backup for _ in range(2)]
    for _ in range(2):
        back_up(repository, b"b", name="mail")
    prune(repository, Retention(last=1), source="vm/web")
    assert deleted(repository) == {web[0]}
    with pytest.raises(NotFoundError, match="dns"):
        prune(repository, Retention(last=1), source="dns")


def test_protected_and_deleted_ones(repository: Repository) -> None:
    """Protected backups stay, and those that are marked already keep their time of deletion."""
    backups = [back_up(repository, b"a").backup for _ in range(4)]
    protect(repository, backups[0])
    delete(repository, backups[1])
    before = fold(Backups(repository).marks(backups[1])).deleted
    result = prune(repository, Retention(last=1))
    assert {item.backup: item.keep for item in result.decisions} == {
        backups[0]: True,
        backups[2]: False,
        backups[3]: True,
    }
    assert fold(Backups(repository).marks(backups[1])).deleted == before


def test_protected_while_it_runs(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody protects a backup between the decision and the mark: it stays, and the result says why."""
    old, _ = back_up(repository, b"a").backup, back_up(repository, b"a").backup
    real = prune_module.select

    def meanwhile(*arguments: object, **options: object) -> object:
        verdicts = real(*arguments, **options)  # type: ignore[arg-type]  # passed on
        protect(repository, old)
        return verdicts

    monkeypatch.setattr(prune_module, "select", meanwhile)
    result = prune(repository, Retention(last=1))
    assert (result.decisions[0].keep, result.decisions[0].reasons) == (True, ("protected meanwhile",))
    assert deleted(repository) == set()


def test_by_the_clock_of_the_storage(repository: Repository) -> None:
    """Seen from a day later, yesterday's backups are beyond `within`; the newest stays."""
    backups = [back_up(repository, b"a").backup for _ in range(2)]
    later = repository.clock() + timedelta(days=1, seconds=1)
    prune(repository, Retention(within=timedelta(days=1)), now=later)
    assert deleted(repository) == {backups[0]}


def test_nothing_asked_for(repository: Repository) -> None:
    """A policy without a rule is refused."""
    back_up(repository, b"a")
    with pytest.raises(UsageError, match="keep nothing"):
        prune(repository, Retention())
    assert deleted(repository) == set()
