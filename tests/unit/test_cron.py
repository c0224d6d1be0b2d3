"""When schedules are due."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.policy.cron import check_cron, due, next_runs

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "0 0 31 2 *", "x * * * *", "* * * * * * *"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    """Too few and too many fields, numbers out of range, and a day that never comes."""
    with pytest.raises(UsageError):
        check_cron(text)


def test_a_time_is_that_of_its_zone_in_summer_and_winter() -> None:
    """Half past two in Berlin is 00:30 UTC in summer and 01:30 in winter."""
    assert next_runs("30 2 * * *", BERLIN, after=datetime(2026, 7, 1, tzinfo=UTC), count=1)[0].hour == 0
    assert next_runs("30 2 * * *", BERLIN, after=datetime(2026, 1, 1, tzinfo=UTC), count=1)[0].hour == 1


def test_each_day_is_served_once_when_clocks_change() -> None:
    """The hour that is skipped in March and the one that comes twice in October give one run each."""
    for change in (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)):
        assert len(due("30 2 * * *", BERLIN, after=change, now=change + timedelta(days=1))) == 1


@given(st.integers(0, 330 * 24 * 60), st.lists(st.integers(1, 400), max_size=8))
def test_looking_often_finds_what_looking_once_finds(begin: int, steps: list[int]) -> None:
    """However the time is cut into pieces, no run is missed and none is found twice."""
    found: list[datetime] = []
    start = moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=begin)
    for minutes in steps:
        found += due("*/17 * * * *", BERLIN, after=moment, now=moment + timedelta(minutes=minutes))
        moment += timedelta(minutes=minutes)
    assert found == due("*/17 * * * *", BERLIN, after=start, now=moment)
