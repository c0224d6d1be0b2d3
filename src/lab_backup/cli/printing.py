"""Where text goes: results to stdout, as one JSON object if asked for; everything else to stderr."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class OutputClosedError(Exception):
    """Whoever was reading stdout has left (`lab-backup list | head`); there is nobody to tell about it."""


def printable(text: str) -> str:
    """Return `text` with control characters escaped: names come from guests and storages, and terminals obey them."""
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def show(value: T, render: Callable[[T], str], *, as_json: bool) -> None:
    """Print `value` to stdout, as JSON or as `render` puts it for people."""
    if as_json:
        show_json(value)
    else:
        _write(printable(render(value)).rstrip("\n"))


def show_json(value: object) -> None:
    """Print one JSON object on a line of its own. Times are ISO 8601; names that are no valid text are escaped."""
    import msgspec

    plain: Any = msgspec.to_builtins(value)
    _write(json.dumps(plain))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error


def tell(kind: str, text: str) -> None:
    """Write a line to stderr: `kind` is `error`, `hint`, `warning` or `note`."""
    sys.stderr.write(f"{kind}: {printable(text)}\n")
    sys.stderr.flush()


def tell_all(*, warnings: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
    """Write warnings and notes to stderr."""
    for text in warnings:
        tell("warning", text)
    for text in notes:
        tell("note", text)
