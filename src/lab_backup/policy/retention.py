"""Retention: which backups of each source to keep, by grandfather, father and son. Every decision has its reasons.

Of each period (an hour, a day, an ISO week, a month, a year, in a time zone of choice) that has backups the newest one is kept, for so many of the
newest periods. Pruning often keeps the same backups as pruning once.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

Outcome = Literal["keep", "remove", "deleted"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of each to keep; `within` keeps all that are no older than that."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Refuse negative numbers: a ValueError is a mistake of the caller."""
        if any(getattr(self, item.name) < type(getattr(self, item.name))(0) for item in fields(self)):
            raise ValueError("a retention rule cannot be negative")

    @property
    def empty(self) -> bool:
        """Whether no rule keeps anything."""
        return not any(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, slots=True)
class Point:
    """A backup as retention sees it. `source` identifies what was backed up; `good` is None where nobody has verified it."""

    id: str
    source: Hashable
    time: datetime
    protected: bool = False
    archived: bool = False
    deleted: bool = False
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a backup, and why: all that keeps it, or the one thing that speaks against it."""

    outcome: Outcome
    reasons: tuple[str, ...]


def select(points: Iterable[Point], policy: Policy, *, now: datetime, zone: tzinfo = UTC) -> dict[str, Decision]:
    """Return the decision about every point by its id. Raises ValueError for a policy that keeps nothing.

    Always kept: a source's newest backup, its newest that is not known to be damaged, its newest that was verified and found good, protected and archived ones, and those dated after `now`, which
    take nobody's place. Backups that are known to be damaged take nobody's place either: the rules hold for all, and again for the others alone.
    """
    if policy.empty:
        raise ValueError("a retention policy without rules would keep nothing")
    sources: dict[Hashable, list[Point]] = {}
    decisions = {}
    for point in points:
        if point.deleted:
            decisions[point.id] = Decision("deleted", ("deleted already",))
        else:
            sources.setdefault(point.source, []).append(point)
    for group in sources.values():
        for identity, reasons in _reasons(group, policy, now, zone).items():
            found = tuple(dict.fromkeys(reasons))
            decisions[identity] = Decision("keep", found) if found else Decision("remove", ("no rule keeps it",))
    return decisions


def _reasons(group: list[Point], policy: Policy, now: datetime, zone: tzinfo) -> dict[str, list[str]]:
    """Return what keeps each point of one source."""
    ordered = sorted(group, key=lambda point: (point.time.astimezone(UTC), point.id), reverse=True)
    kept: dict[str, list[str]] = {point.id: [] for point in ordered}
    past = [point for point in ordered if point.time <= now]
    for point in ordered:
        marks = (
            (point.protected, "protected"),
            (point.archived, "archived"),
            (point.time > now, "dated in the future"),
        )
        kept[point.id] += [word for holds, word in marks if holds]
    if past:
        kept[past[0].id].append("newest")
    for word, fitting in (("newest not damaged", (None, True)), ("newest verified", (True,))):
        best = next((point for point in past if point.good in fitting), None)
        if best is not None:
            kept[best.id].append(word)
    for candidates in (past, [point for point in past if point.good is not False]):
        _apply(candidates, policy, now, zone, kept)
    return kept


def _apply(points: list[Point], policy: Policy, now: datetime, zone: tzinfo, kept: dict[str, list[str]]) -> None:
    """Add the rules that keep `points`, newest first, to `kept`."""
    for point in points[: policy.last]:
        kept[point.id].append("last")
    for point in points:
        if policy.within and now.astimezone(UTC) - point.time.astimezone(UTC) <= policy.within:
            kept[point.id].append("within")
    for name, period in _PERIODS.items():
        seen: set[str] = set()
        for point in points:
            label = period(point.time.astimezone(zone))
            if label in seen:
                continue
            if len(seen) == getattr(policy, name):
                break
            seen.add(label)
            kept[point.id].append(f"{name} {label}")


def _week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year:04d}-W{week:02d}"


# The hour that comes twice when summer time ends is two hours: the offset from UTC tells them apart.
_PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda local: f"{local:%Y-%m-%d %H:00%z}",
    "daily": lambda local: f"{local:%Y-%m-%d}",
    "weekly": _week,
    "monthly": lambda local: f"{local:%Y-%m}",
    "yearly": lambda local: f"{local:%Y}",
}
