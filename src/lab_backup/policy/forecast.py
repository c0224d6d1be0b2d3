"""When a storage will be full, if it goes on as in the last weeks."""

from collections.abc import Sequence
from datetime import date, timedelta

LEAST = 3  # samples, below which nothing can be said
FARTHEST = 3650  # days ahead, beyond which nobody plans


def growth(samples: Sequence[tuple[date, int]]) -> float | None:
    """Return the bytes a day by which a storage grows: the slope of the straight line that fits the samples best (least squares). None for too few."""
    if len({day for day, _ in samples}) < LEAST:
        return None
    start = min(day for day, _ in samples)
    points = [((day - start).days, used) for day, used in samples]
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def full_on(samples: Sequence[tuple[date, int]], capacity: int | None) -> date | None:
    """Return the day on which `capacity` bytes are reached at that rate; None where that is not in sight."""
    slope = growth(samples)
    if slope is None or slope <= 0 or not capacity:
        return None
    last, used = max(samples)
    days = max(0, capacity - used) / slope
    return last + timedelta(days=round(days)) if days <= FARTHEST else None
