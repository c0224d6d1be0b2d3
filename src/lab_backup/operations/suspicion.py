"""What is odd about a backup against the earlier ones of its source, and what is done about it."""

from dataclasses import dataclass
from datetime import UTC, datetime

from lab_backup.operations.lifecycle import who
from lab_backup.policy.anomaly import HISTORY, MIN_CHANGE, Profile, judge
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.chunk_store import Counts
from lab_backup.repository.manifest import Manifest, SourceInfo
from lab_backup.storage.base import StorageError


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is odd about a backup, and the backup before it that is to be kept for that."""

    last_good: Backup | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def suspect(backups: Backups, source: SourceInfo, counts: Counts, bytes_total: int) -> Suspicion:
    """Compare what is about to become a backup of `source`, `bytes_total` large, with the earlier ones."""
    profile = Profile(bytes_total, counts.bytes_new, counts.bytes_new_stored, counts.entropy)
    if profile.change <= MIN_CHANGE:  # no jump, whatever was before: not worth a look
        return Suspicion()
    earlier = [
        backup
        for backup in backups.all()
        if (backup.manifest.source.kind, backup.manifest.source.id) == (source.kind, source.id)
        and backup.state.deleted is None
    ]
    level = judge(profile, [known for backup in earlier if (known := _profile(backup.manifest)) is not None][-HISTORY:])
    said = f"{profile.change:.0%} of {source.name} is new data, far more than usual"
    if level == "note":
        return Suspicion(notes=(said,))
    good = [backup for backup in earlier if not backup.manifest.statistics.anomaly]
    if level == "normal" or not good:
        return Suspicion()
    warning = (
        f"{said}, and it looks encrypted or otherwise random. If nobody did that on purpose, suspect malware. "
        f"Backup {good[-1].id[:12]}, the last one before, is protected from deletion until: lab-backup unprotect"
    )
    return Suspicion(good[-1], (warning,))


def _profile(manifest: Manifest) -> Profile | None:
    known = manifest.statistics
    if known.bytes_new is None or known.bytes_new_stored is None:
        return None
    return Profile(known.bytes_total, known.bytes_new, known.bytes_new_stored, known.entropy)


def protect_last_good(backups: Backups, suspicion: Suspicion, backup_id: str) -> tuple[str, ...]:
    """Protect the backup before the suspicious `backup_id`; return warnings where that failed."""
    good = suspicion.last_good
    if good is None or good.state.protected:
        return ()
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    reason = f"the last backup before {backup_id[:12]}, whose new data looks encrypted"
    try:
        backups.mark(good.id, "protected", value=True, time=time, by=who(), reason=reason)
    except StorageError as error:
        return (f"backup {good.id[:12]} could not be protected ({error}); do so: lab-backup protect {good.id[:12]}",)
    return ()
