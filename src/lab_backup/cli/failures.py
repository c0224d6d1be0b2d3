"""How the program ends when something went wrong: a sentence, a hint, and an exit status; never a traceback or a secret."""

import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import INTERRUPTED, SYSTEM, UNEXPECTED, USAGE, Verdict, verdict
from lab_backup.errors import LabBackupError

DEBUG = "LAB_BACKUP_DEBUG"
"""Environment variable: if set to anything, tracebacks are written to stderr."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in the words of the command line."""

    verdict: Verdict
    message: str
    hint: str | None

    def as_object(self) -> dict[str, object]:
        """Return what `--json` prints."""
        code, kind = self.verdict
        return {"error": {"code": int(code), "kind": kind, "message": self.message, "hint": self.hint}}


def describe(error: BaseException) -> Failure:
    """Return what to tell the user about `error`.

    The text of an error that nobody foresaw is left out: only its class and place are certain to hold no secret.
    """
    if isinstance(error, LabBackupError):
        return Failure(verdict(error), printing.printable(error.message), _printable(error.hint))
    if isinstance(error, typer.TyperException):
        # Typer lets a phrase of its validator through.
        message = error.format_message().replace("Value error, ", "")
        return Failure(USAGE, printing.printable(message), _see_help(error))
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Failure(INTERRUPTED, "interrupted", None)
    if isinstance(error, OSError):
        return Failure(SYSTEM, printing.printable(_of_system(error)), None)
    if isinstance(error, MemoryError):
        return Failure(SYSTEM, "there is not enough memory", "end other programs, or use a machine with more")
    return Failure(
        UNEXPECTED,
        f"a fault in lab-backup itself: {type(error).__name__}{_place(error)}",
        f"please report it; with {DEBUG}=1 in the environment the same command shows the details",
    )


def report(error: BaseException, *, as_json: bool, environment: Mapping[str, str] = os.environ) -> int:
    """Tell the user about `error`, on stderr and with `as_json` also on stdout; return the exit status."""
    failure = describe(error)
    if environment.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    printing.tell("error", failure.message)
    if failure.hint:
        printing.tell("hint", failure.hint)
    if as_json:
        printing.show_json(failure.as_object())
    return int(failure.verdict.code)


def _printable(text: str | None) -> str | None:
    return None if text is None else printing.printable(text)


def _see_help(error: typer.TyperException) -> str | None:
    context = getattr(error, "ctx", None)
    return None if context is None else f"see: {context.command_path} --help"


def _of_system(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return ": ".join([*names, error.strerror or type(error).__name__])


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
