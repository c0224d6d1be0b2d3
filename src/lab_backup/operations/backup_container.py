"""Backing up a container: its image by layers, its own files, its volumes, and all that makes it again."""

import time
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import msgspec

from lab_backup.errors import NotFoundError
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.operations.held_files import Gathered, Held, Part, manifest_of, store_held
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.suspicion import protect_last_good, suspect
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import SourceInfo, StreamEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.podman import image
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.container import ContainerFacts, MountPoint, look_at
from lab_backup.sources.podman.freeze import PAUSE_LIMIT, Hold, Hooks
from lab_backup.sources.podman.saved import CONTAINER, IMAGE, ROOTFS, bind_name, layer_name, of_member, volume_name

KIND = "container"


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """What is read, and how it is held still meanwhile.

    `volumes`: names, None for all. `bind_mounts`: also folders of the host that are mounted in it. `full`: read every file. `pause_limit` in seconds.
    """

    hold: Hold = Hold.PAUSE
    hooks: Hooks = field(default_factory=Hooks)
    pause_limit: float = PAUSE_LIMIT
    volumes: tuple[str, ...] | None = None
    bind_mounts: bool = False
    full: bool = False


def backup_container(
    repository: Repository,
    name: str,
    *,
    connect: str,
    options: ContainerOptions | None = None,
    backup_id: str | None = None,
    progress: Progress | None = None,
) -> BackupSummary:
    """Back up the container `name` of the service `connect`, reading only layers and files that its last backup here does not have.

    All files are read while it runs; only what changed meanwhile is read while it is held still. With a `backup_id` that was published already, that
    backup is returned and nothing is done. Raises LabBackupError; then the container runs as before, and the repository holds nothing but garbage of ours.
    """
    chosen = options or ContainerOptions()
    shown = progress or Silent()
    identity = backup_id or new_backup_id()
    backups = Backups(repository)
    if backups.exists(identity):
        return summary(backups.find(identity))
    began = time.monotonic()
    with Podman(connect) as podman:
        facts = look_at(podman, name)
        # Containers are made anew all the time, under new ids, and are the same to their owner: the name on its host counts.
        source = SourceInfo(kind=KIND, id=f"{podman.host}/{facts.saved.name}", name=facts.saved.name, host=podman.host)
        latest = None if chosen.full else backups.latest(KIND, source.id)
        gathered = Gathered()
        parts = parts_of(podman, facts, chosen, gathered)
        held = Held(
            facts.saved.name, facts.sharing, parts, hold=chosen.hold, hooks=chosen.hooks, pause_limit=chosen.pause_limit
        )
        with BackupSession(repository, identity) as session:
            store_settings(podman, facts, session, Reader(repository), latest, gathered, shown)
            store_held(podman, held, session, latest, gathered, shown)
            session.flush()
            suspicion = suspect(backups, source, gathered.counts, gathered.size)
            manifest = manifest_of(repository, source, latest, gathered, suspicion, session, began)
            backup = session.publish(manifest)
    unprotected = protect_last_good(backups, suspicion, identity)
    result = summary(backup)
    return replace(result, warnings=(*result.warnings, *unprotected))


# --- what there is to read ---


def parts_of(
    podman: Podman, facts: ContainerFacts, options: ContainerOptions, gathered: Gathered, member: str | None = None
) -> list[Part]:
    """Return the trees to read; tell `gathered` about those that are not. `member` as in `of_member`. Raises NotFoundError for an unknown volume."""
    gathered.warnings += facts.warnings
    gathered.notes += facts.notes
    unknown = sorted(set(options.volumes or ()) - {volume.name for volume in facts.volumes})
    if unknown:
        known = ", ".join(volume.name for volume in facts.volumes) or "none"
        raise NotFoundError(f"{facts.saved.name} has no volume {unknown[0]}", hint=f"its volumes: {known}")
    volumes = [volume for volume in facts.volumes if options.volumes is None or volume.name in options.volumes]
    left = [volume.name for volume in facts.volumes if volume not in volumes]
    if left:
        gathered.notes.append(f"volumes that were not asked for are not in it: {', '.join(left)}")
    binds = facts.binds if options.bind_mounts else []
    if facts.binds and not options.bind_mounts:
        gathered.notes.append(
            f"folders of the host that are mounted in it are not in it: {', '.join(bind.path for bind in facts.binds)}"
        )
    if not podman.is_local:
        missing = ["its own files", *(f"volume {volume.name}" for volume in volumes), *(bind.path for bind in binds)]
        gathered.warnings.append(
            f"only image and settings are in this backup: {', '.join(missing)} can be read on {podman.host} only; run lab-backup there"
        )
        return []
    parts = []
    if facts.writable_layer is None:
        gathered.warnings.append("the container's own files are not in it: its storage driver has no folder for them")
    else:
        parts.append(
            Part(of_member(ROOTFS, member), Path(facts.writable_layer), f"the own files of {facts.saved.name}")
        )
    parts += [Part(volume_name(volume.name), Path(volume.path), f"volume {volume.name}") for volume in volumes]
    parts += [_bind(bind, gathered, member) for bind in binds if Path(bind.path).is_dir()]
    return parts


def _bind(bind: MountPoint, gathered: Gathered, member: str | None) -> Part:
    name = of_member(bind_name(bind.destination), member)
    gathered.notes.append(f"{bind.path} of the host is in it as {name}")
    return Part(name, Path(bind.path), bind.path)


# --- the image ---


def store_settings(
    podman: Podman,
    facts: ContainerFacts,
    session: BackupSession,
    reader: Reader,
    latest: Backup | None,
    gathered: Gathered,
    shown: Progress,
    member: str | None = None,
) -> None:
    """Store what makes the container again, and the layers of its image that are not there yet. `member` as in `of_member`. Raises PodmanError."""
    gathered.files.append(session.write_file(of_member(CONTAINER, member), msgspec.json.encode(facts.saved)))
    stored = {stream.name: stream for stream in gathered.streams}
    known: dict[str, StreamEntry] = {}
    for digest in dict.fromkeys(facts.image.layers):
        if layer_name(digest) in stored:
            known[digest] = stored[layer_name(digest)]
            continue
        entry = None if latest is None else latest.manifest.stream(layer_name(digest))
        if entry is not None and session.keep_stream(entry):
            known[digest] = entry
    config = (
        _known_config(reader, latest, facts, of_member(IMAGE, member))
        if known.keys() >= set(facts.image.layers)
        else None
    )
    if config is None:
        shown.start(None, f"reading the image of {facts.saved.name}")

        def store(digest: str, stream: BinaryIO) -> None:
            known[digest], counts = session.write_stream(layer_name(digest), _Bytes(stream), advance=shown.advance)
            gathered.counts.add(counts)

        config = image.read_image(podman, facts.image, known=frozenset(known), store=store)
    gathered.streams += [
        known[digest] for digest in dict.fromkeys(facts.image.layers) if layer_name(digest) not in stored
    ]
    gathered.files.append(session.write_file(of_member(IMAGE, member), config))


def _known_config(reader: Reader, latest: Backup | None, facts: ContainerFacts, name: str) -> bytes | None:
    """Return the image's configuration as the last backup has it; None where it has another image, or cannot be read."""
    entry = None if latest is None else latest.manifest.file(name)
    if entry is None:
        return None
    try:
        config = reader.read_file(entry)
    except DamagedError:
        return None
    return config if image.id_of(config) == facts.image.id else None


class _Bytes(BufferedIOBase):
    """What can only be read, to be read into a buffer."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # nobody else gives it a buffer
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
