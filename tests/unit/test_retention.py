"""Retention: never less than asked, never the newest, the same again, in every time zone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.policy.retention import FUTURE, NEWEST, NEWEST_SOUND, PROTECTED, Point, Retention, select

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
COUNTED = ("last", "hourly", "daily", "weekly", "monthly", "yearly")

zones = st.sampled_from(
    [UTC, BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Asia/Kathmandu")]
)
times = st.one_of(
    st.integers(-3 * 366 * 24 * 60, 2 * 24 * 60).map(lambda minutes: NOW + timedelta(minutes=minutes)),
    st.integers(-600, 0).map(lambda minutes: datetime(2025, 10, 26, 3, tzinfo=UTC) + timedelta(minutes=minutes)),
)
policies = st.builds(
    Retention,
    **{name: st.integers(0, 4) for name in COUNTED},
    within=st.integers(0, 60).map(lambda days: timedelta(days=days)),
    zone=zones,
)


@st.composite
def histories(draw: st.DrawFn) -> list[Point]:
    """Return the backups of a source, some protected, some damaged, some dated in the future."""
    drawn = draw(st.lists(st.tuples(times, st.booleans(), st.sampled_from([True, True, False])), max_size=25))
    return [
        Point(f"{number:02}", time, held and number % 3 == 0, sound) for number, (time, held, sound) in enumerate(drawn)
    ]


def kept(points: Sequence[Point], retention: Retention) -> list[Point]:
    """Return what stays, newest first."""
    verdicts = select(points, retention, now=NOW)
    assert set(verdicts) == {point.id for point in points}
    assert all(verdict.keep == bool(verdict.reasons) for verdict in verdicts.values())
    return sorted(
        (point for point in points if verdicts[point.id].keep), key=lambda point: (point.time, point.id), reverse=True
    )


def past(points: Sequence[Point]) -> list[Point]:
    """Return what is not dated in the future, newest first."""
    return sorted(
        (point for point in points if point.time <= NOW), key=lambda point: (point.time, point.id), reverse=True
    )


@given(points=histories(), retention=policies)
def test_what_always_stays(points: list[Point], retention: Retention) -> None:
    """The newest, the newest sound one, what is protected, and what is dated in the future."""
    stays = kept(points, retention)
    old = past(points)
    assert old[:1] == past(stays)[:1]
    assert next((point for point in old if point.sound), None) == next(
        (point for point in past(stays) if point.sound), None
    )
    assert all(point in stays for point in points if point.held or point.time > NOW)


@given(points=histories(), retention=policies)
def test_never_less_than_asked(points: list[Point], retention: Retention) -> None:
    """Of each kind of period as many are represented as were asked for, or as there are, the newest ones; by sound backups where there are any."""
    stays, old = past(kept(points, retention)), past(points)
    assert len(stays) >= min(retention.last, len(old))
    keys = {
        "daily": lambda point: point.time.astimezone(retention.zone).date(),
        "weekly": lambda point: point.time.astimezone(retention.zone).isocalendar()[:2],
        "monthly": lambda point: point.time.astimezone(retention.zone).strftime("%Y-%m"),
        "yearly": lambda point: point.time.astimezone(retention.zone).year,
    }
    for rule, key in keys.items():
        wanted = list(dict.fromkeys(key(point) for point in old))[: getattr(retention, rule)]
        for period in wanted:
            there = [point for point in old if key(point) == period]
            left = [point for point in stays if key(point) == period]
            assert left
            assert any(point.sound for point in left) or not any(point.sound for point in there)
    assert all(point in stays for point in old if NOW - point.time < retention.within)


@given(points=histories(), retention=policies)
def test_asking_again_changes_nothing(points: list[Point], retention: Retention) -> None:
    """What was kept is kept again."""
    stays = kept(points, retention)
    assert kept(stays, retention) == stays


@given(points=histories(), retention=policies, ahead=st.integers(1, 10**6))
def test_wrong_clocks_push_nothing_out(points: list[Point], retention: Retention, ahead: int) -> None:
    """A backup dated in the future changes the fate of no other."""
    wrong = Point("wrong", NOW + timedelta(seconds=ahead))
    with_it = select([*points, wrong], retention, now=NOW)
    assert with_it.pop("wrong").reasons == (FUTURE,)
    assert with_it == select(points, retention, now=NOW)


@given(points=histories(), retention=policies, more=st.sampled_from(COUNTED))
def test_asking_for_more_keeps_more(points: list[Point], retention: Retention, more: str) -> None:
    """A larger number never deletes what a smaller one kept."""
    fields = {name: getattr(retention, name) for name in (*COUNTED, "within", "zone")}
    larger = Retention(**{**fields, more: fields[more] + 1})
    assert set(kept(points, retention)) <= set(kept(points, larger))


def reasons(times: Sequence[datetime], retention: Retention, **options: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the reasons of backups made at `times`; `held` and `damaged` are numbers of some of them."""
    points = [
        Point(str(number), time, number in options.get("held", ()), number not in options.get("damaged", ()))
        for number, time in enumerate(times)
    ]
    verdicts = select(points, retention, now=NOW)
    return [verdicts[point.id].reasons for point in points]


def test_grandfather_father_son() -> None:
    """A year of nightly backups under a usual policy: eleven stay, each for the reasons that one expects."""
    nights = [datetime(2026, 6, 15, 2, tzinfo=UTC) - timedelta(days=days) for days in range(366)]
    found = reasons(nights, Retention(daily=3, weekly=3, monthly=3, yearly=2))
    assert found[0] == (NEWEST, "daily 1", "weekly 1", "monthly 1", "yearly 1")
    assert found[1] == ("daily 2", "weekly 2")  # Sunday the 14th
    assert found[2] == ("daily 3",)
    assert found[8] == ("weekly 3",)  # Sunday the 7th
    assert found[15] == ("monthly 2",)  # the 31st of May
    assert found[46] == ("monthly 3",)
    assert found[166] == ("yearly 2",)  # the 31st of December
    assert sum(bool(reason) for reason in found) == 7


def test_hours_when_clocks_are_put_back() -> None:
    """In Berlin the hour from two to three happens twice on 2025-10-26: each has its backup. The day is one day."""
    nights = [datetime(2025, 10, 26, hour, 30, tzinfo=UTC) for hour in (2, 1, 0, -1 % 24)]
    nights[3] -= timedelta(days=1)
    assert reasons(nights, Retention(hourly=4, zone=BERLIN)) == [
        (NEWEST, "hourly 1"),
        ("hourly 2",),
        ("hourly 3",),
        ("hourly 4",),
    ]
    assert reasons(nights[:3], Retention(daily=3, zone=BERLIN)) == [(NEWEST, "daily 1"), (), ()]


def test_damaged_backups_stand_for_nothing() -> None:
    """A day is represented by its newest sound backup; where the newest of all is damaged, the newest sound one stays as well."""
    times = [NOW - timedelta(hours=hours) for hours in (1, 2, 3, 30)]
    assert reasons(times, Retention(daily=1), damaged=[0]) == [(NEWEST,), (NEWEST_SOUND, "daily 1"), (), ()]


def test_protected_ones_say_so() -> None:
    """Protection is a reason besides the rules."""
    assert reasons([NOW - timedelta(days=400)], Retention(last=1), held=[0]) == [(PROTECTED, NEWEST, "last 1")]


@pytest.mark.parametrize("retention", [Retention(), Retention(zone=BERLIN)])
def test_policies_that_ask_for_nothing(retention: Retention) -> None:
    """They can be told from others."""
    assert not retention.keeps_something
    assert Retention(yearly=1).keeps_something
    assert Retention(within=timedelta(1)).keeps_something
