"""The three standard streams, made safe: closed ones, narrow encodings, and readers that leave early."""

import contextlib
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Make stdin, stdout and stderr usable whatever the caller has done to them.

    A closed one would give its number to the next file that is opened, and what is printed would end up in that.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or _nowhere("r")
    sys.stdout = sys.stdout or _nowhere("w")
    sys.stderr = sys.stderr or _nowhere("w")
    for stream in (sys.stdout, sys.stderr):
        # Names from elsewhere may have characters that this terminal's encoding lacks.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")


def _nowhere(mode: str) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")  # type: ignore[return-value]  # noqa: PTH123  lives as long as the program


def abandon_stdout() -> None:
    """Send what stdout still holds nowhere: the interpreter would fail once more when it flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
