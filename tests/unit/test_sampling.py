"""Samples: which chunks a day reads, and how random a chunk's sample is."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.cli.commands.verify import parse_cover
from lab_backup.errors import UsageError
from lab_backup.repository.check import _in_share
from lab_backup.repository.chunk_store import entropy


@given(blob=st.binary(min_size=32, max_size=32), days=st.integers(1, 400), first=st.integers(0, 40000))
def test_every_chunk_has_one_day(blob: bytes, days: int, first: int) -> None:
    """On each of so many days in a row, whichever comes first, a chunk is read exactly once."""
    share = parse_cover(f"{days}d")
    assert sum(_in_share(blob, share, day) for day in range(first, first + days)) == 1


@pytest.mark.parametrize("text", ["", "0d", "-1d", "30", "d", "1.5d", "99999d"])
def test_odd_covers(text: str) -> None:
    """What is no whole number of days is refused."""
    with pytest.raises(UsageError):
        parse_cover(text)


def test_entropy() -> None:
    """One value has none, all values equally often have eight bits, and random bytes nearly so."""
    assert entropy(memoryview(bytes(1024))) == 0
    assert entropy(memoryview(bytes(range(256)) * 4)) == 8
    assert entropy(memoryview(os.urandom(1024))) > 7.5
