"""Pruning a repository: marks that can be taken back, source by source, with reasons."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.operations import prune as prune_module
from lab_backup.operations.lifecycle import delete, protect, undelete
from lab_backup.operations.prune import make_policy, prune
from lab_backup.policy import retention
from lab_backup.policy.cron import parse_zone
from lab_backup.policy.retention import Policy
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


def made(repository: Repository, count: int, name: str = "web") -> list[str]:
    """Make backups and return their ids, oldest first; those of one millisecond are in the order of their ids."""
    for number in range(count):
        back_up(repository, bytes([number]) * 9, name=name)
    return [backup.id for backup in Backups(repository).all() if backup.manifest.source.name == name]


def deleted(repository: Repository) -> set[str]:
    """Return the ids of the backups that are marked."""
    return {backup.id for backup in Backups(repository).all() if backup.state.deleted is not None}


def test_each_source_by_itself(repository: Repository) -> None:
    """Each source keeps its own newest; the rest is marked, can still be restored, and be taken back."""
    web = made(repository, 3)
    mail = made(repository, 2, "mail")
    told = prune(repository, Policy(last=1), dry_run=True)
    assert (told.kept, told.removed, deleted(repository)) == (2, 3, set())
    done = prune(repository, Policy(last=1))
    removed = {item.backup for item in done.decisions if item.outcome == "remove"}
    assert removed == deleted(repository) == {*web[:2], mail[0]}
    assert done.bytes_removed == sum(item.bytes_stored for item in done.decisions if item.backup in removed)
    again = prune(repository, Policy(last=1))
    assert (again.kept, again.removed, again.deleted_before) == (2, 0, 3)
    assert len(restored(repository, web[0])) == 9
    undelete(repository, web[0])
    assert deleted(repository) == {web[1], mail[0]}


def test_one_source(repository: Repository) -> None:
    """Only the named source is touched; a name that nothing has is an error."""
    web = made(repository, 2)
    made(repository, 2, "mail")
    prune(repository, Policy(last=1), source="vm/web")
    assert deleted(repository) == {web[0]}
    with pytest.raises(NotFoundError, match="dns"):
        prune(repository, Policy(last=1), source="dns")


def test_protected_and_deleted_ones(repository: Repository) -> None:
    """Protected backups stay, and those that are marked already keep their time of deletion."""
    backups = made(repository, 4)
    protect(repository, backups[0])
    delete(repository, backups[1])
    before = fold(Backups(repository).marks(backups[1])).deleted
    result = prune(repository, Policy(last=1))
    assert [item.outcome for item in result.decisions] == ["keep", "deleted", "remove", "keep"]
    assert fold(Backups(repository).marks(backups[1])).deleted == before


def test_protected_while_it_runs(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody protects a backup between the decision and the mark: it stays, and the result says why."""
    old, _ = made(repository, 2)
    real = retention.select

    def meanwhile(*arguments: object, **options: object) -> object:
        decisions = real(*arguments, **options)  # type: ignore[arg-type]  # passed on
        protect(repository, old)
        return decisions

    monkeypatch.setattr(prune_module, "select", meanwhile)
    result = prune(repository, Policy(last=1))
    assert (result.decisions[0].outcome, result.decisions[0].reasons) == ("keep", ("protected",))
    assert deleted(repository) == set()


def test_by_the_clock_of_the_storage(repository: Repository) -> None:
    """Seen from a day later, yesterday's backups are beyond `within`; the newest stays."""
    backups = made(repository, 2)
    later = repository.clock() + timedelta(days=1, seconds=1)
    prune(repository, Policy(within=timedelta(days=1)), now=later)
    assert deleted(repository) == {backups[0]}


def test_what_is_refused() -> None:
    """A policy without rules, a negative number and an unknown time zone are errors of usage."""
    with pytest.raises(UsageError, match="no rule"):
        make_policy()
    with pytest.raises(UsageError, match="negative"):
        make_policy(daily=-1)
    for name in ("Mars/Olympus", "../etc/passwd", ""):
        with pytest.raises(UsageError, match="time zone"):
            parse_zone(name)
