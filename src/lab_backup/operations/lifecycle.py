"""What may be said about a backup after it was made: delete it, take that back, protect it."""

import getpass
import socket
from dataclasses import replace
from datetime import UTC, datetime

from lab_backup.errors import AmbiguousError, UsageError
from lab_backup.operations.catalogue import BackupSummary, summary, unreadable_summary
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.collect import UNDO_MARGIN
from lab_backup.repository.errors import DamagedError, ProtectedError
from lab_backup.repository.marks import MarkKind, fold
from lab_backup.repository.repository import Repository
from lab_backup.storage.base import ObjectLockedError, ObjectNotFoundError


def who() -> str:
    """Return who is asking, `user@host`, for the repository's records."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _record(backups: Backups, backup_id: str, kind: MarkKind, *, value: bool) -> datetime:
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return backups.mark(backup_id, kind, value, time=time, by=who())


def delete(repository: Repository, spec: str, *, now: bool = False) -> BackupSummary:
    """Mark a backup as deleted; until the grace period ends, `undelete` takes that back. Other backups are not touched.

    With `now` it is gone at once and for good; its space comes back by `gc`. Works on a full storage. A backup whose manifest is
    damaged can be deleted `now` only: it is given up, so that collections, which cannot tell what it needs, run again.
    Where the storage has locked it, it can be marked, and goes when the lock has ended: the answer says when.
    Raises ProtectedError, BackupNotFoundError, AmbiguousError, DamagedError, ObjectLockedError for `now`.
    """
    backups = Backups(repository)
    try:
        backup = backups.find(spec)
    except DamagedError:
        if not now:
            raise
        return _give_up(backups, spec)
    _refuse_protected(backup)
    locked = _locked_until(repository, backup.id)
    if now and locked is not None:
        raise ObjectLockedError(
            f"backup {backup.id[:12]} of {backup.manifest.source.name} is locked until {locked:%Y-%m-%d %H:%M} UTC: nobody can remove it before",
            until=locked,
            hint="delete it without --now: gc removes it when the lock has ended",
        )
    if backup.state.deleted is None:
        _record(backups, backup.id, "deleted", value=True)
    if now:
        # Somebody may protect it at this very moment. He looks after his mark as we do after ours, so at least one of us sees the other's.
        marked = backup._replace(state=fold(backups.marks(backup.id)))
        try:
            _refuse_protected(marked)
        except ProtectedError:
            _record(backups, backup.id, "deleted", value=False)
            raise
        backups.remove(backup.id)
        return summary(marked)
    return replace(summary(backups.find(backup.id)), locked_until=locked)


def _locked_until(repository: Repository, backup_id: str) -> datetime | None:
    storage = repository.storage
    if not storage.locks:
        return None
    try:
        return storage.locked_until(manifests.path(backup_id))
    except ObjectNotFoundError:
        return None


def _unreadable(backups: Backups, spec: str) -> str:
    """Return the id of the backup that `spec` names among those whose manifests the last listing could not read."""
    fitting = sorted(
        backup_id for path in backups.damaged if (backup_id := manifests.id_of(path)) and backup_id.startswith(spec)
    )
    if len(fitting) > 1:
        raise AmbiguousError(f"{spec} fits {', '.join(fitting)}", hint="give more characters")
    return fitting[0]


def _give_up(backups: Backups, spec: str) -> BackupSummary:
    backup_id = _unreadable(backups, spec)
    state = fold(backups.marks(backup_id))
    if state.protected or state.archived:
        raise ProtectedError(
            f"backup {backup_id[:12]}, whose manifest is damaged, is protected or archived",
            hint="take that back first: lab-backup unprotect",
        )
    try:
        backups.remove(backup_id)
    except ObjectLockedError as error:
        # Whoever planted it may have locked it for a hundred years: from now on nobody asks what it needs.
        _record(backups, backup_id, "deleted", value=True)
        return replace(unreadable_summary(backup_id), locked_until=error.until)
    return unreadable_summary(backup_id)


def _refuse_protected(backup: Backup) -> None:
    if backup.state.protected or backup.state.archived:
        word = "protected" if backup.state.protected else "archived"
        raise ProtectedError(
            f"backup {backup.id[:12]} of {backup.manifest.source.name} is {word}",
            hint="take that back first: lab-backup unprotect",
        )


def undelete(repository: Repository, spec: str) -> BackupSummary:
    """Take a deletion back. Raises UsageError where the backup is not deleted or its grace period is over."""
    backups = Backups(repository)
    backup = backups.find(spec)
    deleted = backup.state.deleted
    if deleted is None:
        raise UsageError(f"backup {backup.id[:12]} is not deleted")
    too_late = UsageError(
        f"the grace period of backup {backup.id[:12]} is over: it may be removed at any moment",
        hint="restore what you need now",
    )
    if repository.clock() - deleted >= repository.grace:
        raise too_late
    # A collection that reads the marks from then on sees ours; one that has read them waits UNDO_MARGIN longer than we do.
    if _record(backups, backup.id, "deleted", value=False) - deleted >= repository.grace + UNDO_MARGIN / 2:
        raise too_late
    return summary(backups.find(backup.id))


def protect(repository: Repository, spec: str) -> BackupSummary:
    """Keep a backup from deletion until `unprotect`. Raises UsageError where it is marked as deleted."""
    backups = Backups(repository)
    backup = backups.find(spec)
    if backup.state.deleted is None:
        _record(backups, backup.id, "protected", value=True)
        backup = backups.find(backup.id)
    if backup.state.deleted is not None:
        raise UsageError(
            f"backup {backup.id[:12]} is marked as deleted", hint="take that back first: lab-backup undelete"
        )
    return summary(backup)


def archive(repository: Repository, spec: str) -> BackupSummary:
    """Keep a backup for good: no retention removes it, and a deletion by hand is refused until `unarchive`. Raises UsageError where it is marked as deleted."""
    backups = Backups(repository)
    backup = backups.find(spec)
    if backup.state.deleted is not None:
        raise UsageError(
            f"backup {backup.id[:12]} is marked as deleted", hint="take that back first: lab-backup undelete"
        )
    _record(backups, backup.id, "archived", value=True)
    return summary(backups.find(backup.id))


def unarchive(repository: Repository, spec: str) -> BackupSummary:
    """Let retention decide about a backup again."""
    backups = Backups(repository)
    backup = backups.find(spec)
    _record(backups, backup.id, "archived", value=False)
    return summary(backups.find(backup.id))


def unprotect(repository: Repository, spec: str) -> BackupSummary:
    """Allow deletion again, also of a backup whose manifest is damaged."""
    backups = Backups(repository)
    try:
        backup = backups.find(spec)
    except DamagedError:
        backup_id = _unreadable(backups, spec)
        _record(backups, backup_id, "protected", value=False)
        return unreadable_summary(backup_id)
    _record(backups, backup.id, "protected", value=False)
    return summary(backups.find(backup.id))
