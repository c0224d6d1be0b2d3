"""Anomalies: a rewrite with random data stands out, ordinary life does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.policy.anomaly import MIN_HISTORY, Profile, judge
from lab_backup.units import GiB

profiles = st.builds(
    lambda total, new, ratio, entropy: Profile(total, int(total * new), int(total * new * ratio), entropy),
    st.integers(1, 10**13),
    st.floats(0, 1),
    st.floats(0, 1.1),
    st.none() | st.floats(0, 8),
)


def made(change: float, ratio: float, entropy: float | None) -> Profile:
    """Return the profile of a backup of a 10 GiB source."""
    new = int(10 * GiB * change)
    return Profile(10 * GiB, new, int(new * ratio), entropy)


DAILY = [made(1.0, 0.45, 4.8), *(made(0.01 + step / 500, 0.4 + step / 50, 4.5) for step in range(5))]
MEDIA = [made(1.0, 0.99, 7.8), *(made(0.02, 0.99, 7.8) for _ in range(5))]


@given(profile=profiles, history=st.lists(profiles, max_size=MIN_HISTORY - 1))
def test_first_backups(profile: Profile, history: list[Profile]) -> None:
    """Without enough history there is no alarm, whatever is backed up."""
    assert judge(profile, history) == "normal"


@given(profile=profiles, times=st.integers(MIN_HISTORY, 30))
def test_more_of_the_same(profile: Profile, times: int) -> None:
    """A backup like all before it is normal, however odd they are."""
    assert judge(profile, [profile] * times) == "normal"


@given(history=st.lists(profiles, min_size=MIN_HISTORY, max_size=30), compressed=st.floats(0, 0.85))
def test_compressible_never_alarms(history: list[Profile], compressed: float) -> None:
    """However much changes: what compresses was not encrypted."""
    assert judge(made(1.0, compressed, None), history) != "warning"


@given(changes=st.lists(st.floats(0, 0.05), min_size=MIN_HISTORY, max_size=20), change=st.floats(0.5, 1))
def test_encryption(changes: list[float], change: float) -> None:
    """Random data over half of a source that changed little, and compressed, is warned of; one odd backup before it changes nothing."""
    history = [made(usual, 0.5, 4.5) for usual in changes]
    assert judge(made(change, 1.0, 7.8), history) == "warning"
    assert judge(made(change, 1.0, 7.8), [made(1.0, 0.5, 4.5), *history]) == "warning"


@pytest.mark.parametrize(
    ("profile", "history", "level"),
    [
        (made(0.9, 1.0, 7.8), DAILY, "warning"),
        (made(0.2, 1.0, 7.8), DAILY, "warning"),
        (made(0.2, 1.0, None), DAILY, "warning"),
        (made(0.03, 0.45, 4.6), DAILY, "normal"),
        (made(0.03, 1.0, 7.8), DAILY, "normal"),
        (made(0.5, 0.5, 5.0), DAILY, "note"),
        (made(0.0, 0.0, None), DAILY, "normal"),
        (made(0.15, 0.99, 7.8), MEDIA, "note"),
        (made(0.9, 1.0, 7.8), MEDIA, "warning"),
        (Profile(0, 0, 0), DAILY, "normal"),
    ],
    ids=[
        "encrypted", "partly encrypted", "no sample", "usual", "an archive copied", "upgrade", "unchanged", "new films",
        "films encrypted", "empty",
    ],
)  # fmt: skip
def test_life(profile: Profile, history: list[Profile], level: str) -> None:
    """What happens to machines: growth is normal, an upgrade is noted, encryption is warned of."""
    assert judge(profile, history) == level
