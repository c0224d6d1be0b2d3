"""What the program's exit status means. `docs/cli.md` promises these numbers to scripts."""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from lab_backup.errors import (
    AccessDeniedError,
    AmbiguousError,
    BusyError,
    CancelledError,
    LabBackupError,
    NotFoundError,
    TargetExistsError,
    UsageError,
)
from lab_backup.repository.errors import DamagedError, NewerVersionError, ProtectedError, WrongKeyError
from lab_backup.storage.base import NoSpaceError
from lab_backup.targets.errors import TargetFullError


class ExitCode(IntEnum):
    """The exit status. A command returns one of them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    WARNINGS = 3
    """Done, but something needs attention."""
    NOT_FOUND = 4
    WRONG_KEY = 5
    DAMAGED = 6
    BUSY = 7
    TARGET_EXISTS = 8
    INTERRUPTED = 130


class Verdict(NamedTuple):
    """How an error ends the program: its exit status, and one word for scripts that read the JSON."""

    code: ExitCode
    kind: str


UNEXPECTED = Verdict(ExitCode.FAILED, "unexpected")
SYSTEM = Verdict(ExitCode.FAILED, "system")
USAGE = Verdict(ExitCode.USAGE, "usage")
INTERRUPTED = Verdict(ExitCode.INTERRUPTED, "interrupted")

_VERDICTS: Mapping[type[LabBackupError], Verdict] = {
    LabBackupError: Verdict(ExitCode.FAILED, "failed"),
    UsageError: USAGE,
    AmbiguousError: Verdict(ExitCode.USAGE, "ambiguous"),
    NotFoundError: Verdict(ExitCode.NOT_FOUND, "not_found"),
    BusyError: Verdict(ExitCode.BUSY, "busy"),
    TargetExistsError: Verdict(ExitCode.TARGET_EXISTS, "target_exists"),
    AccessDeniedError: Verdict(ExitCode.FAILED, "access_denied"),
    CancelledError: INTERRUPTED,
    WrongKeyError: Verdict(ExitCode.WRONG_KEY, "wrong_key"),
    DamagedError: Verdict(ExitCode.DAMAGED, "damaged"),
    NewerVersionError: Verdict(ExitCode.FAILED, "newer_version"),
    ProtectedError: Verdict(ExitCode.FAILED, "protected"),
    NoSpaceError: Verdict(ExitCode.FAILED, "no_space"),
    TargetFullError: Verdict(ExitCode.FAILED, "no_space"),
}


def verdict(error: BaseException) -> Verdict:
    """Return how `error` ends the program; of its classes the most derived one that is known decides."""
    for cls in type(error).__mro__:
        if cls in _VERDICTS:
            return _VERDICTS[cls]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return SYSTEM if isinstance(error, OSError) else UNEXPECTED
