"""Sizes and durations as people write them."""

import re

from lab_backup.errors import UsageError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

_SUFFIXES = {"": 1, "B": 1, "K": KiB, "KIB": KiB, "M": MiB, "MIB": MiB, "G": GiB, "GIB": GiB, "T": TiB, "TIB": TiB}
_SIZE = re.compile(r"([0-9]{1,30})\s*([A-Za-z]*)")  # longer numbers are no sizes, and int() refuses them
MAX_DURATION = 36_500 * 86400  # seconds: a century; dates have an end
_DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,30})\s*([smhdw]?)")


def parse_size(text: str) -> int:
    """Return the bytes that `text` names: `128KiB`, `128K`, `131072`. Suffixes are binary (IEC 80000-13).

    Raises UsageError where `text` is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _SUFFIXES.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size", hint="write a number and a unit, such as 128KiB or 4MiB")
    return int(match[1]) * factor


def format_size(count: int) -> str:
    """Return `count` bytes in IEC units with one decimal: `1.5 MiB`; whole bytes below one KiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(abs(value), 1) < 1024 or unit == "TiB":
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def parse_duration(text: str) -> int:
    """Return the seconds that `text` names: `30s`, `15m`, `24h`, `7d`, `2w`; a bare number is seconds.

    Raises UsageError where `text` is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration", hint="write a number and a unit, such as 15m, 24h or 7d")
    seconds = int(match[1]) * _DURATIONS[match[2]]
    if seconds > MAX_DURATION:
        raise UsageError(f"{text!r} is too long", hint=f"at most {MAX_DURATION // 86400}d")
    return seconds


def format_duration(seconds: float) -> str:
    """Return `seconds` the way a person reads them: `4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
