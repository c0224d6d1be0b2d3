"""Backing up a pod: all its containers in one backup, of one moment, and what makes the pod again."""

import time
from dataclasses import replace

import msgspec

from lab_backup.errors import UsageError
from lab_backup.operations.backup_container import ContainerOptions, parts_of, store_settings
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.operations.held_files import Gathered, Held, manifest_of, store_held
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.suspicion import protect_last_good, suspect
from lab_backup.repository.backups import Backups
from lab_backup.repository.manifest import SourceInfo
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.container import ContainerFacts
from lab_backup.sources.podman.freeze import Target
from lab_backup.sources.podman.pod import look_at_pod
from lab_backup.sources.podman.saved import POD

KIND = "pod"


def backup_pod(
    repository: Repository,
    name: str,
    *,
    connect: str,
    options: ContainerOptions | None = None,
    backup_id: str | None = None,
    progress: Progress | None = None,
) -> BackupSummary:
    """Back up the pod `name` of the service `connect`, reading only layers and files that its last backup here does not have.

    All files are read while it runs; then all its containers are held still together for what changed meanwhile, so that the backup is of one moment.
    A volume that several of them mount is read once. With a `backup_id` that was published already, that backup is returned and nothing is done.
    Raises LabBackupError; then the containers run as before, and nothing is published.
    """
    chosen = options or ContainerOptions()
    shown = progress or Silent()
    identity = backup_id or new_backup_id()
    backups = Backups(repository)
    if backups.exists(identity):
        return summary(backups.find(identity))
    began = time.monotonic()
    with Podman(connect) as podman:
        facts = look_at_pod(podman, name)
        if not facts.members:
            raise UsageError(f"pod {facts.saved.name} has no containers", hint="there is nothing in it to back up")
        source = SourceInfo(kind=KIND, id=f"{podman.host}/{facts.saved.name}", name=facts.saved.name, host=podman.host)
        latest = None if chosen.full else backups.latest(KIND, source.id)
        gathered = Gathered()
        parts = {
            part.name: part
            for member in facts.members
            for part in parts_of(podman, member, chosen, gathered, member.saved.name)
        }
        gathered.notes = list(dict.fromkeys(gathered.notes))
        held = Held(
            f"pod {facts.saved.name}",
            _targets(facts.members),
            list(parts.values()),
            own=len(facts.members),
            hold=chosen.hold,
            hooks=chosen.hooks,
            pause_limit=chosen.pause_limit,
        )
        with BackupSession(repository, identity) as session:
            reader = Reader(repository)
            gathered.files.append(session.write_file(POD, msgspec.json.encode(facts.saved)))
            for member in facts.members:
                store_settings(podman, member, session, reader, latest, gathered, shown, member.saved.name)
            store_held(podman, held, session, latest, gathered, shown)
            session.flush()
            suspicion = suspect(backups, source, gathered.counts, gathered.size)
            backup = session.publish(manifest_of(repository, source, latest, gathered, suspicion, session, began))
    unprotected = protect_last_good(backups, suspicion, identity)
    result = summary(backup)
    return replace(result, warnings=(*result.warnings, *unprotected))


def _targets(members: list[ContainerFacts]) -> list[Target]:
    """Return the pod's own containers, then all others that share one of their volumes."""
    own = {member.sharing[0].id: member.sharing[0] for member in members}
    others = {target.id: target for member in members for target in member.sharing[1:] if target.id not in own}
    return [*own.values(), *(others[identity] for identity in sorted(others))]
