"""Hosts whose clocks are wrong by hours or years, over a storage that has its own."""

from datetime import UTC, datetime, timedelta, tzinfo

import pytest

from lab_backup.extent import Extent
from lab_backup.operations import backup as backup_module
from lab_backup.operations import lifecycle
from lab_backup.operations.catalogue import list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, undelete
from lab_backup.repository.backups import Backups
from support.engine import CHUNK, back_up, restored
from support.stage import Stage, blocks, gc


@pytest.fixture
def host(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> "Host":
    """Return a host whose clock can be set apart from the storage's."""
    return Host(stage, monkeypatch)


class Host:
    """Sets the clock of this host, as far as operations look at it."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Begin in step with the storage."""
        self.ahead = timedelta(0)
        clock = self

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "Shifted":
                now = (stage.clock.now + clock.ahead).astimezone(tz or UTC)
                return cls.fromtimestamp(now.timestamp(), tz)

        for module in (backup_module, lifecycle):
            monkeypatch.setattr(module, "datetime", Shifted)


def test_a_backup_from_the_future_is_the_latest_only_until_the_next(stage: Stage, host: Host) -> None:
    """A host whose clock is ahead does not stay at the head of its source for ever: increments and `latest:` go on from the newest."""
    with stage.open() as repository:
        host.ahead = timedelta(days=365)
        first = back_up(repository, blocks(1, 2, 3)).backup
        assert Backups(repository).find("latest:guest").id == first
        stage.pass_time(minutes=5)
        host.ahead = timedelta(0)
        second = back_up(repository, blocks(1, 2, 4), changes=[Extent(2 * CHUNK, CHUNK)])
        assert second.parent == first
        stage.pass_time(minutes=5)
        third = back_up(repository, blocks(1, 5, 4), changes=[Extent(CHUNK, CHUNK)])
        assert third.parent == second.backup
        assert Backups(repository).find("latest:guest").id == third.backup
        assert [item.backup for item in list_backups(repository).backups] == [first, second.backup, third.backup]
        assert restored(repository, third.backup) == blocks(1, 5, 4)


@pytest.mark.parametrize("days", [-4000, -1, 1, 4000])
def test_what_a_host_thinks_of_the_time_changes_nothing_about_grace_periods(
    stage: Stage, host: Host, days: int
) -> None:
    """Ages are the storage's: a wrong clock neither shortens the time to undelete nor keeps garbage for ever."""
    host.ahead = timedelta(days=days)
    with stage.open() as repository:
        kept = back_up(repository, blocks(1, 2, 3), name="kept").backup
        gone = back_up(repository, blocks(4, 5, 6), name="gone").backup
        delete(repository, kept)
        delete(repository, gone)
        stage.pass_time(hours=23)
        assert collect(repository).backups_removed == []
        undelete(repository, kept)
        stage.pass_time(hours=3)
        assert collect(repository).backups_removed == [gone]
    for hours in (25, 25, 25, 200):
        stage.pass_time(hours=hours)
        gc(stage)
    with stage.open() as repository:
        assert [backup.id for backup in Backups(repository).all()] == [kept]
        assert restored(repository, kept) == blocks(1, 2, 3)
    assert not stage.paths("removed")
    assert not stage.paths("leases")
