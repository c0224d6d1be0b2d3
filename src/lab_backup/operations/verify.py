"""Verification, as users ask for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lab_backup.errors import UsageError
from lab_backup.operations.lifecycle import who
from lab_backup.operations.progress import Progress, Silent
from lab_backup.repository.backups import Backups
from lab_backup.repository.check import Checker, Damage, today
from lab_backup.repository.repository import Repository
from lab_backup.storage.base import StorageError


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """`checked` blobs are there, `read` ones were also read back (`bytes_read`); `corrupt` and `missing` things were found."""

    backups: int
    checked: int
    read: int
    bytes_read: int
    corrupt: int
    missing: int
    damage: tuple[Damage, ...]
    notes: tuple[str, ...]


def verify(
    repository: Repository,
    backups: Sequence[str] = (),
    *,
    read_data: bool = False,
    sample: float | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Check backups; if none is named, all of them and the repository's own objects.

    The structure always, with `sample` (0 to 1) a share of the content, with `read_data` every byte. The outcome is recorded in the
    repository; a backup made later stores damaged parts again.
    Raises BackupNotFoundError, UsageError, and what the storage raises: a storage out of reach is not damage.
    """
    if sample is not None and not 0 < sample <= 1:
        raise UsageError("the sample must be more than 0 % and at most 100 %", hint="for example --sample 5%")
    shown = progress or Silent()
    look = Backups(repository)
    chosen = [look.find(spec) for spec in backups] if backups else None
    share = 1.0 if read_data else sample or 0.0
    shown.start(None, "verifying" if share else "verifying the structure")
    checker = Checker(repository, repository.cache.directory.parent, advance=shown.advance)
    report = checker.run(chosen, share=share, day=today(datetime.now(UTC)))
    notes = []
    try:
        checker.record(look.all() if chosen is None else chosen, share=share, by=who())
    except StorageError as error:
        notes.append(f"the outcome could not be recorded in the repository: {error}")
    return VerifyResult(
        backups=report.backups,
        checked=report.checked,
        read=report.read,
        bytes_read=report.bytes_read,
        corrupt=report.corrupt,
        missing=report.missing,
        damage=tuple(report.damage),
        notes=tuple(notes),
    )
