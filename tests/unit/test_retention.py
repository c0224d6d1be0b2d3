"""Retention: never less than asked, never the newest, the same again, in every time zone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lab_backup.policy.retention import Point, Policy, select

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
    Policy,
    **dict.fromkeys(COUNTED, st.integers(0, 4)),
    within=st.integers(0, 60).map(lambda days: timedelta(days=days)),
).filter(lambda policy: not policy.empty)


@st.composite
def histories(draw: st.DrawFn) -> list[Point]:
    """Return the backups of two sources, some protected, archived, deleted, damaged, or dated in the future."""
    rare = st.sampled_from([False] * 5 + [True])
    drawn = draw(
        st.lists(
            st.tuples(st.sampled_from(["web", "mail"]), times, rare, rare, rare, st.sampled_from([None, True, False])),
            max_size=25,
        )
    )
    return [Point(f"{number:02}", *values) for number, values in enumerate(drawn)]


def kept(points: Sequence[Point], policy: Policy, *, zone: tzinfo = UTC, now: datetime = NOW) -> list[Point]:
    """Return what stays and was not deleted before; every point has a decision with reasons."""
    decisions = select(points, policy, now=now, zone=zone)
    assert set(decisions) == {point.id for point in points}
    assert all(decision.reasons for decision in decisions.values())
    return [point for point in points if decisions[point.id].outcome == "keep"]


def past(points: Sequence[Point], source: str) -> list[Point]:
    """Return what is there of a source and not dated in the future, newest first."""
    there = [point for point in points if point.source == source and point.time <= NOW and not point.deleted]
    return sorted(there, key=lambda point: (point.time, point.id), reverse=True)


@given(points=histories(), policy=policies, zone=zones)
def test_what_always_stays(points: list[Point], policy: Policy, zone: tzinfo) -> None:
    """The newest of each source, its newest good one, what is protected or archived, what is dated in the future."""
    stays = kept(points, policy, zone=zone)
    for source in ("web", "mail"):
        old = past(points, source)
        for found in (
            old[:1],
            [point for point in old if point.good is not False][:1],
            [point for point in old if point.good][:1],
        ):
            assert all(point in stays for point in found)
    live = [point for point in points if not point.deleted]
    assert all(point in stays for point in live if point.protected or point.archived or point.time > NOW)


@given(points=histories(), policy=policies, zone=zones)
def test_never_less_than_asked(points: list[Point], policy: Policy, zone: tzinfo) -> None:
    """Of each kind of period as many are represented as asked for, or as there are; by undamaged backups where there are any."""
    stays = kept(points, policy, zone=zone)
    keys: dict[str, Callable[[Point], object]] = {
        "daily": lambda point: point.time.astimezone(zone).date(),
        "weekly": lambda point: point.time.astimezone(zone).isocalendar()[:2],
        "monthly": lambda point: point.time.astimezone(zone).strftime("%Y-%m"),
        "yearly": lambda point: point.time.astimezone(zone).year,
    }
    for source in ("web", "mail"):
        old, left = past(points, source), past(stays, source)
        assert old[: policy.last] == [point for point in left if point in old[: policy.last]]
        for rule, key in keys.items():
            for candidates in (old, [point for point in old if point.good is not False]):
                for period in list(dict.fromkeys(map(key, candidates)))[: getattr(policy, rule)]:
                    assert next(point for point in candidates if key(point) == period) in left
        assert all(point in left for point in old if NOW - point.time < policy.within)


@given(points=histories(), policy=policies, zone=zones)
def test_asking_again_changes_nothing(points: list[Point], policy: Policy, zone: tzinfo) -> None:
    """What was kept is kept again."""
    stays = kept(points, policy, zone=zone)
    assert kept(stays, policy, zone=zone) == stays


@given(points=histories(), policy=policies, zone=zones, days=st.integers(0, 400))
def test_pruning_often(points: list[Point], policy: Policy, zone: tzinfo, days: int) -> None:
    """Pruning now and again later keeps what pruning only later keeps."""
    assume(all(point.time <= NOW for point in points))
    later = NOW + timedelta(days=days)
    once = kept(points, policy, zone=zone, now=later)
    twice = kept(kept(points, policy, zone=zone), policy, zone=zone, now=later)
    assert once == twice


@given(points=histories(), policy=policies, ahead=st.integers(1, 10**6))
def test_wrong_clocks_push_nothing_out(points: list[Point], policy: Policy, ahead: int) -> None:
    """A backup dated in the future changes the fate of no other."""
    wrong = Point("wrong", "web", NOW + timedelta(seconds=ahead))
    with_it = select([*points, wrong], policy, now=NOW)
    assert with_it.pop("wrong").reasons == ("dated in the future",)
    assert with_it == select(points, policy, now=NOW)


@given(points=histories(), policy=policies)
def test_sources_do_not_meet(points: list[Point], policy: Policy) -> None:
    """What becomes of one source's backups does not depend on another's, nor on those deleted before."""
    together = select(points, policy, now=NOW)
    alone = select([point for point in points if point.source == "web" and not point.deleted], policy, now=NOW)
    assert {identity: together[identity] for identity in alone} == alone
    assert all((together[point.id].outcome == "deleted") == point.deleted for point in points)


@given(points=histories(), policy=policies, more=st.sampled_from(COUNTED))
def test_asking_for_more_keeps_more(points: list[Point], policy: Policy, more: str) -> None:
    """A larger number never removes what a smaller one kept."""
    larger = replace(policy, **{more: getattr(policy, more) + 1})
    after = kept(points, larger)
    assert all(point in after for point in kept(points, policy))


def labels(times: Sequence[datetime], policy: Policy, zone: tzinfo) -> list[tuple[str, ...]]:
    """Return by which periods each of these backups is kept."""
    decisions = select([Point(str(n), "web", time) for n, time in enumerate(times)], policy, now=NOW, zone=zone)
    return [tuple(word for word in decisions[str(n)].reasons if word.split()[0] in COUNTED) for n in range(len(times))]


def test_grandfather_father_son() -> None:
    """A year of nightly backups: each that stays does so for the periods that one expects, ISO weeks among them."""
    nights = [datetime(2026, 6, 15, 2, tzinfo=UTC) - timedelta(days=days) for days in range(366)]
    found = labels(nights, Policy(daily=3, weekly=3, monthly=3, yearly=2), UTC)
    assert {number: words for number, words in enumerate(found) if words} == {
        0: ("daily 2026-06-15", "weekly 2026-W25", "monthly 2026-06", "yearly 2026"),
        1: ("daily 2026-06-14", "weekly 2026-W24"),
        2: ("daily 2026-06-13",),
        8: ("weekly 2026-W23",),
        15: ("monthly 2026-05",),
        46: ("monthly 2026-04",),
        166: ("yearly 2025",),
    }


def test_hours_when_clocks_are_put_back() -> None:
    """In Berlin the hour from two to three happens twice on 2025-10-26: both are kept. The day of 25 hours is one day."""
    nights = [datetime(2025, 10, 26, 2, 30, tzinfo=UTC) - timedelta(hours=hours) for hours in range(4)]
    assert labels(nights, Policy(hourly=4), BERLIN) == [
        ("hourly 2025-10-26 03:00+0100",),
        ("hourly 2025-10-26 02:00+0100",),
        ("hourly 2025-10-26 02:00+0200",),
        ("hourly 2025-10-26 01:00+0200",),
    ]
    assert labels(nights, Policy(daily=3), BERLIN) == [("daily 2025-10-26",), (), (), ()]


def test_policies_that_make_no_sense() -> None:
    """One without rules is refused, and so is a negative number."""
    with pytest.raises(ValueError, match="keep nothing"):
        select([], Policy(), now=NOW)
    with pytest.raises(ValueError, match="negative"):
        Policy(daily=-1)
    with pytest.raises(ValueError, match="negative"):
        Policy(within=timedelta(-1))
