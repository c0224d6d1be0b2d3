"""When a storage will be full."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from lab_backup.policy.forecast import full_on, growth

START = date(2030, 1, 1)


@given(
    first=st.integers(0, 10**12),
    slope=st.integers(-(10**9), 10**9),
    days=st.lists(st.integers(0, 400), min_size=3, unique=True),
)
def test_a_straight_line_is_found(first: int, slope: int, days: list[int]) -> None:
    """Whatever days are there: a storage that grows evenly is known to grow so, and is full when the line reaches its size."""
    samples = [(START + timedelta(days=day), first + slope * day) for day in days]
    found = growth(samples)
    assert found is not None
    assert abs(found - slope) < 1
    last = max(days)
    capacity = first + slope * (last + 100)
    if slope > 0:
        assert full_on(samples, capacity) == START + timedelta(days=last + 100)
    elif slope < 0:
        assert full_on(samples, 10**15) is None


def test_what_cannot_be_told_is_not_told() -> None:
    """Too few days, a storage without a size, one that stands still, and one that is full already."""
    two = [(START, 1), (START, 1), (START + timedelta(days=1), 2)]
    assert growth(two) is None
    assert full_on(two, 10) is None
    still = [(START + timedelta(days=day), 5) for day in range(5)]
    assert full_on(still, 10) is None
    rising = [(START + timedelta(days=day), 10 * day) for day in range(5)]
    assert full_on(rising, None) is None
    assert full_on(rising, 40) == START + timedelta(days=4)
    assert full_on(rising, 10**9) is None, "farther away than anybody plans"
