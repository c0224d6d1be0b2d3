"""What may be said about a backup after it was made: delete it, take that back, protect it."""

import getpass
import socket
from datetime import UTC, datetime

from lab_backup.errors import UsageError
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.repository.backups import Backups
from lab_backup.repository.errors import BackupNotFoundError, ProtectedError
from lab_backup.repository.marks import MarkKind
from lab_backup.repository.repository import Repository


def who() -> str:
    """Return who is asking, `user@host`, for the repository's records."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _mark(repository: Repository, spec: str, kind: MarkKind, *, value: bool) -> BackupSummary:
    backups = Backups(repository)
    backup = backups.find(spec)
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    backups.mark(backup.id, kind, value, time=time, by=who())
    return summary(backups.find(backup.id))


def delete(repository: Repository, spec: str, *, now: bool = False) -> BackupSummary:
    """Mark a backup as deleted; until the grace period ends, `undelete` takes that back. Other backups are not touched.

    With `now` it is gone at once and for good; its space comes back by `gc`. Works on a full storage.
    Raises ProtectedError, BackupNotFoundError, AmbiguousError.
    """
    backups = Backups(repository)
    backup = backups.find(spec)
    if backup.state.protected or backup.state.archived:
        word = "protected" if backup.state.protected else "archived"
        raise ProtectedError(
            f"backup {backup.id[:12]} of {backup.manifest.source.name} is {word}",
            hint="take that back first: lab-backup unprotect",
        )
    if now:
        backups.remove(backup.id)
        return summary(backup)
    if backup.state.deleted is not None:
        return summary(backup)
    return _mark(repository, backup.id, "deleted", value=True)


def undelete(repository: Repository, spec: str) -> BackupSummary:
    """Take a deletion back. Raises UsageError where the backup is not deleted or its grace period is over."""
    backups = Backups(repository)
    backup = backups.find(spec)
    if backup.state.deleted is None:
        raise UsageError(f"backup {backup.id[:12]} is not deleted")
    if repository.clock() - backup.state.deleted >= repository.grace:
        raise UsageError(
            f"the grace period of backup {backup.id[:12]} is over: it may be removed at any moment",
            hint="restore what you need now",
        )
    restored = _mark(repository, backup.id, "deleted", value=False)
    if not backups.exists(backup.id):
        raise BackupNotFoundError(f"backup {backup.id[:12]} was removed at this very moment")
    return restored


def protect(repository: Repository, spec: str) -> BackupSummary:
    """Keep a backup from deletion until `unprotect`. Raises UsageError where it is marked as deleted."""
    backup = Backups(repository).find(spec)
    if backup.state.deleted is not None:
        raise UsageError(
            f"backup {backup.id[:12]} is marked as deleted", hint="take that back first: lab-backup undelete"
        )
    return _mark(repository, backup.id, "protected", value=True)


def unprotect(repository: Repository, spec: str) -> BackupSummary:
    """Allow deletion again."""
    return _mark(repository, spec, "protected", value=False)
