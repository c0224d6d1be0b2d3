"""Backing up a container: its image by layers, its own files, its volumes, and all that makes it again."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import msgspec

from lab_backup import __version__
from lab_backup.errors import NotFoundError
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.statistics import statistics_of
from lab_backup.operations.suspicion import Suspicion, protect_last_good, suspect
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.chunk_store import Counts
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import (
    VERSION,
    FileEntry,
    Manifest,
    SourceInfo,
    StreamEntry,
    TreeEntry,
)
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman import image
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.container import ContainerFacts, MountPoint, look_at
from lab_backup.sources.podman.freeze import PAUSE_LIMIT, Freeze, Hold, Hooks
from lab_backup.sources.podman.saved import CONTAINER, IMAGE, ROOTFS, bind_name, layer_name, volume_name
from lab_backup.sources.source import Consistency
from lab_backup.units import format_duration

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


@dataclass(frozen=True, slots=True)
class _Part:
    """A tree of files to read: its name in the backup, its folder, and what people call it."""

    name: str
    folder: Path
    called: str


@dataclass(slots=True)
class _Gathered:
    """What was stored so far."""

    streams: list[StreamEntry] = field(default_factory=list)
    trees: list[TreeEntry] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    consistency: Consistency = Consistency.OFFLINE


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
        parts, gathered = _parts(podman, facts, chosen)
        with BackupSession(repository, identity) as session:
            gathered.files.append(session.write_file(CONTAINER, msgspec.json.encode(facts.saved)))
            _store_image(podman, facts, session, Reader(repository), latest, gathered, shown)
            _store_files(podman, facts, parts, session, chosen, latest, gathered, shown)
            session.flush()
            suspicion = suspect(backups, source, gathered.counts, _size(gathered))
            manifest = _manifest(repository, identity, source, latest, gathered, suspicion, session, began)
            backup = session.publish(manifest)
    unprotected = protect_last_good(backups, suspicion, identity)
    result = summary(backup)
    return replace(result, warnings=(*result.warnings, *unprotected))


def _size(gathered: _Gathered) -> int:
    return sum(stream.size for stream in gathered.streams) + sum(tree.bytes_total for tree in gathered.trees)


def _manifest(
    repository: Repository,
    identity: str,
    source: SourceInfo,
    latest: Backup | None,
    gathered: _Gathered,
    suspicion: Suspicion,
    session: BackupSession,
    began: float,
) -> Manifest:
    incremental = latest is not None and any(tree.kind == "incremental" for tree in gathered.trees)
    counts = gathered.counts
    return Manifest(
        version=VERSION,
        backup=identity,
        repository=repository.config.id,
        time=gathered.moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        source=source,
        kind="incremental" if incremental else "full",
        consistency=gathered.consistency,
        parent=latest.id if latest is not None and incremental else None,
        files=tuple(gathered.files),
        streams=tuple(gathered.streams),
        trees=tuple(gathered.trees),
        statistics=statistics_of(
            counts, bytes_total=_size(gathered), bytes_uploaded=session.bytes_uploaded, began=began, suspicion=suspicion
        ),
        warnings=(*gathered.warnings, *suspicion.warnings),
        notes=(*gathered.notes, *suspicion.notes),
        tool=f"lab-backup {__version__}",
    )


# --- what there is to read ---


def _parts(podman: Podman, facts: ContainerFacts, options: ContainerOptions) -> tuple[list[_Part], _Gathered]:
    """Return the trees to read, and what has to be said about those that are not. Raises NotFoundError for an unknown volume."""
    gathered = _Gathered(warnings=list(facts.warnings), notes=list(facts.notes))
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
        return [], gathered
    parts = []
    if facts.writable_layer is None:
        gathered.warnings.append("the container's own files are not in it: its storage driver has no folder for them")
    else:
        parts.append(_Part(ROOTFS, Path(facts.writable_layer), "the container's own files"))
    parts += [_Part(volume_name(volume.name), Path(volume.path), f"volume {volume.name}") for volume in volumes]
    parts += [_bind(bind, gathered) for bind in binds if Path(bind.path).is_dir()]
    return parts, gathered


def _bind(bind: MountPoint, gathered: _Gathered) -> _Part:
    gathered.notes.append(f"{bind.path} of the host is in it as {bind_name(bind.destination)}")
    return _Part(bind_name(bind.destination), Path(bind.path), bind.path)


# --- the image ---


def _store_image(
    podman: Podman,
    facts: ContainerFacts,
    session: BackupSession,
    reader: Reader,
    latest: Backup | None,
    gathered: _Gathered,
    shown: Progress,
) -> None:
    known: dict[str, StreamEntry] = {}
    for digest in dict.fromkeys(facts.image.layers):
        entry = None if latest is None else latest.manifest.stream(layer_name(digest))
        if entry is not None and session.keep_stream(entry):
            known[digest] = entry
    config = _known_config(reader, latest, facts) if known.keys() >= set(facts.image.layers) else None
    if config is None:
        shown.start(None, f"reading the image of {facts.saved.name}")

        def store(digest: str, stream: BinaryIO) -> None:
            known[digest], counts = session.write_stream(layer_name(digest), _Bytes(stream), advance=shown.advance)
            gathered.counts.add(counts)

        config = image.read_image(podman, facts.image, known=frozenset(known), store=store)
    gathered.streams += [known[digest] for digest in dict.fromkeys(facts.image.layers)]
    gathered.files.append(session.write_file(IMAGE, config))


def _known_config(reader: Reader, latest: Backup | None, facts: ContainerFacts) -> bytes | None:
    """Return the image's configuration as the last backup has it; None where it has another image, or cannot be read."""
    entry = None if latest is None else latest.manifest.file(IMAGE)
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


# --- the files ---


def _store_files(
    podman: Podman,
    facts: ContainerFacts,
    parts: Sequence[_Part],
    session: BackupSession,
    options: ContainerOptions,
    latest: Backup | None,
    gathered: _Gathered,
    shown: Progress,
) -> None:
    """Read all trees: once while the container runs, and what changed meanwhile again while it is held still."""
    previous = {part.name: None if latest is None else latest.manifest.file_tree(part.name) for part in parts}
    freeze = Freeze(
        podman,
        facts.sharing,
        backup=session.backup_id,
        hold=options.hold,
        hooks=options.hooks,
        pause_limit=options.pause_limit,
    )
    with freeze:
        if facts.saved.running and options.hold is not Hold.LIVE:
            shown.start(None, f"reading the files of {facts.saved.name} while it runs")
            for part, entry in _read(parts, previous, session, gathered.counts, [], shown):
                previous[part.name] = entry
            session.flush()
        freeze.prepare()
        with freeze.held():
            gathered.moment = datetime.now(UTC)
            shown.start(None, f"reading the files of {facts.saved.name}")
            for _, entry in _read(parts, previous, session, gathered.counts, gathered.warnings, shown):
                gathered.trees.append(entry)
    gathered.trees = [_as_read(tree, latest) for tree in gathered.trees]
    gathered.consistency = _consistency(freeze, facts, options)
    gathered.warnings += freeze.warnings
    if freeze.expired:
        gathered.warnings.append(
            f"{facts.saved.name} ran on after {format_duration(int(options.pause_limit))} of pause, before all was read: files are of different moments; "
            "allow a longer pause, or use --stop"
        )
    elif freeze.held_seconds is not None:
        word = "paused" if options.hold is Hold.PAUSE else "stopped"
        gathered.notes.append(f"{facts.saved.name} was {word} for {freeze.held_seconds:.2f} s")
    others = [target.name for target in facts.sharing[1:]]
    if others and freeze.held_seconds is not None:
        gathered.notes.append(f"held still with it, since they share its volumes: {', '.join(others)}")


def _read(
    parts: Sequence[_Part],
    previous: dict[str, TreeEntry | None],
    session: BackupSession,
    counts: Counts,
    warnings: list[str],
    shown: Progress,
) -> Iterator[tuple[_Part, TreeEntry]]:
    for part in parts:
        with LocalFileTree(part.folder) as tree:
            written = session.write_file_tree(part.name, tree, previous[part.name], advance=shown.advance)
            counts.add(written.counts)
            warnings += [f"{part.called}: {text}" for text in (*tree.warnings, *written.warnings)]
        yield part, written.entry


def _as_read(tree: TreeEntry, latest: Backup | None) -> TreeEntry:
    """Say what the user sees: a second pass over our own first one does not make a full backup an incremental one."""
    if latest is None or latest.manifest.file_tree(tree.name) is None:
        return msgspec.structs.replace(tree, kind="full")
    return tree


def _consistency(freeze: Freeze, facts: ContainerFacts, options: ContainerOptions) -> Consistency:
    if not facts.saved.running and freeze.held_seconds is None:
        return Consistency.OFFLINE
    if freeze.held_seconds is None or freeze.expired:
        return Consistency.FUZZY
    if options.hold is Hold.STOP:
        return Consistency.OFFLINE
    return Consistency.APPLICATION if freeze.prepared else Consistency.CRASH
