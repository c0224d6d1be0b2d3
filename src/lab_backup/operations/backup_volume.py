"""Backing up a volume by itself: its files, held still with all containers that mount it, and how to make it again."""

import time
from dataclasses import dataclass, replace

import msgspec

from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.operations.held_files import Gathered, Held, Part, manifest_of, store_held
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.suspicion import protect_last_good, suspect
from lab_backup.repository.backups import Backups
from lab_backup.repository.manifest import SourceInfo
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.freeze import PAUSE_LIMIT, Hold
from lab_backup.sources.podman.saved import VOLUME, SavedVolumeSource, volume_name
from lab_backup.sources.podman.volume import look_at

KIND = "volume"


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How the containers that mount it are held still, for `pause_limit` seconds at most; `full` reads every file."""

    hold: Hold = Hold.PAUSE
    pause_limit: float = PAUSE_LIMIT
    full: bool = False


def backup_volume(
    repository: Repository,
    name: str,
    *,
    connect: str,
    options: VolumeOptions | None = None,
    backup_id: str | None = None,
    progress: Progress | None = None,
) -> BackupSummary:
    """Back up the volume `name` of the service `connect`, reading only files that its last backup here does not have.

    All files are read while its containers run; only what changed meanwhile is read while they are held still. With a `backup_id` that was published
    already, that backup is returned and nothing is done. Raises LabBackupError; then the containers run as before, and nothing is published.
    """
    chosen = options or VolumeOptions()
    shown = progress or Silent()
    identity = backup_id or new_backup_id()
    backups = Backups(repository)
    if backups.exists(identity):
        return summary(backups.find(identity))
    began = time.monotonic()
    with Podman(connect) as podman:
        facts = look_at(podman, name)
        source = SourceInfo(kind=KIND, id=f"{podman.host}/{name}", name=name, host=podman.host)
        latest = None if chosen.full else backups.latest(KIND, source.id)
        called = f"volume {name}"
        part = Part(volume_name(name), facts.folder, called)
        users = tuple(user.name for user in facts.users)
        held = Held(called, facts.users, [part], own=0, hold=chosen.hold, pause_limit=chosen.pause_limit)
        saved = SavedVolumeSource(podman=podman.version, volume=facts.saved, users=users)
        gathered = Gathered()
        with BackupSession(repository, identity) as session:
            gathered.files.append(session.write_file(VOLUME, msgspec.json.encode(saved)))
            store_held(podman, held, session, latest, gathered, shown)
            session.flush()
            suspicion = suspect(backups, source, gathered.counts, gathered.size)
            backup = session.publish(manifest_of(repository, source, latest, gathered, suspicion, session, began))
    unprotected = protect_last_good(backups, suspicion, identity)
    result = summary(backup)
    return replace(result, warnings=(*result.warnings, *unprotected))
