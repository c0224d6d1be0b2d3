"""Sizes and durations as people write and read them."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.units import GiB, KiB, MiB, TiB, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("131072", 131072),
        ("128KiB", 128 * KiB),
        ("128K", 128 * KiB),
        ("128k", 128 * KiB),
        ("4 MiB", 4 * MiB),
        (" 1g ", 1 * GiB),
        ("2TiB", 2 * TiB),
        ("7B", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    """Every unit works with and without `iB`, in any case, with a blank."""
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "KiB",
        "-1",
        "+1",
        "1.5M",
        "1e3",
        "0x10",
        "1 2",
        "1KB",
        "1PiB",
        "1iB",
        "1K\n1",
        "²",
        "\N{ARABIC-INDIC DIGIT ONE}KiB",
        "9" * 5000,
    ],
)
def test_no_sizes(text: str) -> None:
    """What is no size is refused with the text in the message; decimal units are not silently taken as binary."""
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        parse_size(text)


@given(st.integers(0, 1 << 80))
def test_plain_numbers_are_bytes(count: int) -> None:
    """A bare number is itself."""
    assert parse_size(str(count)) == count


@given(st.integers(0, 1 << 70))
@example(1024**2 - 1)
@example(1023)
@example(1024)
def test_format_size_is_close(count: int) -> None:
    """What is shown is within its last digit of the truth, and never 1024 of a unit that has a bigger one."""
    text = format_size(count)
    number, unit = text.split()
    factor = {"B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}[unit]
    assert abs(float(number) * factor - count) <= max(0.0501 * factor, count * 1e-9)
    assert unit == "TiB" or float(number) < 1024


@given(st.integers(1, 1 << 50))
def test_negative_sizes_mirror_positive_ones(count: int) -> None:
    """A difference of sizes can be shown too."""
    assert format_size(-count) == f"-{format_size(count)}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30", 30), ("30s", 30), ("15m", 900), ("24h", 86400), ("7 d", 604800), ("2w", 1209600)],
)
def test_durations(text: str, seconds: int) -> None:
    """Every unit works, with a blank too; a bare number is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d",
        "-1d",
        "1.5h",
        "1y",
        "1 h 5 m",
        "1M",
        "1H",
        "\N{ARABIC-INDIC DIGIT THREE}d",
        "9" * 5000,
        "36501d",
        "99999999999d",
    ],
)
def test_no_durations(text: str) -> None:
    """What is no duration is refused; `M` might mean months, so upper case is not taken for minutes."""
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (60, "1 min 00 s"),
        (185.4, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (360000, "100 h 00 min"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    """Durations read naturally, and rounding carries into the next unit instead of showing 60."""
    assert format_duration(seconds) == text


@given(st.floats(0, 1e7))
def test_format_duration_never_shows_sixty(seconds: float) -> None:
    """No part of a duration reaches what the next unit should have taken, and the whole is close to the truth."""
    text = format_duration(seconds)
    parts = re.findall(r"([\d.]+) (min|s|h)", text)
    assert all(float(value) < 60 for value, unit in parts if unit != "h")
    shown = sum(float(value) * {"s": 1, "min": 60, "h": 3600}[unit] for value, unit in parts)
    tolerance = {"s": 0.051, "min": 0.51, "h": 60.0}[parts[0][1]]
    assert abs(shown - seconds) <= tolerance
