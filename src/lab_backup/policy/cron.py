"""When a schedule is due: cron expressions (crontab(5), five fields) in a time zone, read by cronsim.

A time that daylight saving skips is served when the clocks have moved, one that comes twice is served once, as Debian's cron does.
"""

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from lab_backup.errors import UsageError

MOST_AT_ONCE = 1000


def parse_zone(name: str) -> ZoneInfo:
    """Return the time zone `name`, such as Europe/Berlin. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"{name!r} is not a time zone", hint="for example --timezone Europe/Berlin, or UTC") from error


def check_cron(expression: str) -> None:
    """Raise UsageError where `expression` is no cron expression, or one that never comes true."""
    next_runs(expression, ZoneInfo("UTC"), after=datetime(2026, 1, 1, tzinfo=UTC), count=1)


def next_runs(expression: str, zone: ZoneInfo, *, after: datetime, count: int) -> list[datetime]:
    """Return the next `count` times after `after`, in UTC. Raises UsageError."""
    try:
        found = [moment.astimezone(UTC) for moment in islice(CronSim(expression, after.astimezone(zone)), count)]
    except (CronSimError, ValueError) as error:
        raise UsageError(
            f"{expression!r} is not a cron expression",
            hint="five fields: minute hour day month weekday, such as 30 2 * * *",
        ) from error
    if not found and count:
        raise UsageError(f"{expression!r} never comes true", hint="look at its day and month")
    return found


def due(expression: str, zone: ZoneInfo, *, after: datetime, now: datetime) -> list[datetime]:
    """Return the times after `after` up to `now`, oldest first, in UTC. At most the newest MOST_AT_ONCE of those that are found first."""
    found: list[datetime] = []
    for moment in next_runs(expression, zone, after=after, count=MOST_AT_ONCE):
        if moment > now:
            break
        found.append(moment)
    return found
