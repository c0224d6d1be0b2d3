"""Exit statuses: which error ends the program how."""

import pytest

from lab_backup.cli.exit_codes import ExitCode, verdict
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
from lab_backup.repository.errors import (
    BackupNotFoundError,
    ChunkCorruptError,
    ChunkMissingError,
    DamagedError,
    LostRaceError,
    NewerVersionError,
    NotARepositoryError,
    ProtectedError,
    RepositoryExistsError,
    WrongKeyError,
)
from lab_backup.sources.image.errors import ImageChangedError
from lab_backup.storage.base import NoSpaceError, StorageAccessError, StorageNotFoundError, TransientStorageError
from lab_backup.targets.errors import TargetAccessError

EXPECTED: dict[type[LabBackupError], tuple[int, str]] = {
    LabBackupError: (1, "failed"),
    LostRaceError: (1, "failed"),
    TransientStorageError: (1, "failed"),
    AccessDeniedError: (1, "access_denied"),
    StorageAccessError: (1, "access_denied"),
    TargetAccessError: (1, "access_denied"),
    NewerVersionError: (1, "newer_version"),
    ProtectedError: (1, "protected"),
    NoSpaceError: (1, "no_space"),
    UsageError: (2, "usage"),
    AmbiguousError: (2, "ambiguous"),
    NotFoundError: (4, "not_found"),
    BackupNotFoundError: (4, "not_found"),
    NotARepositoryError: (4, "not_found"),
    StorageNotFoundError: (4, "not_found"),
    WrongKeyError: (5, "wrong_key"),
    DamagedError: (6, "damaged"),
    ChunkCorruptError: (6, "damaged"),
    ChunkMissingError: (6, "damaged"),
    BusyError: (7, "busy"),
    ImageChangedError: (7, "busy"),
    TargetExistsError: (8, "target_exists"),
    RepositoryExistsError: (8, "target_exists"),
    CancelledError: (130, "interrupted"),
}


@pytest.mark.parametrize(("error", "expected"), EXPECTED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_error_has_its_documented_exit_status(error: type[LabBackupError], expected: tuple[int, str]) -> None:
    """An error ends the program with the status of the most derived of its classes that has one."""
    assert verdict(error("text")) == expected


def test_other_exceptions_are_failures() -> None:
    """What is no LabBackupError fails with 1, apart from Ctrl-C."""
    assert verdict(OSError("disk")).code == ExitCode.FAILED
    assert verdict(OSError("disk")).kind == "system"
    assert verdict(ZeroDivisionError()) == (1, "unexpected")
    assert verdict(KeyboardInterrupt()) == (130, "interrupted")


def test_numbers_are_those_of_the_documentation() -> None:
    """The numbers are a promise to scripts: none may change."""
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "WARNINGS": 3,
        "NOT_FOUND": 4,
        "WRONG_KEY": 5,
        "DAMAGED": 6,
        "BUSY": 7,
        "TARGET_EXISTS": 8,
        "INTERRUPTED": 130,
    }
