"""Reading trees of files while the containers that change them run, and again, for what changed meanwhile, while they are held still."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lab_backup import __version__
from lab_backup.operations.progress import Progress
from lab_backup.operations.statistics import statistics_of
from lab_backup.operations.suspicion import Suspicion
from lab_backup.repository.backups import Backup
from lab_backup.repository.chunk_store import Counts
from lab_backup.repository.manifest import (
    VERSION,
    FileEntry,
    Manifest,
    SourceInfo,
    StreamEntry,
    TreeEntry,
)
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.freeze import PAUSE_LIMIT, Freeze, Hold, Hooks, Target
from lab_backup.sources.podman.leftovers import state
from lab_backup.sources.source import Consistency
from lab_backup.units import format_duration


@dataclass(frozen=True, slots=True)
class Part:
    """A tree of files to read: its name in the backup, its folder, and what people call it."""

    name: str
    folder: Path
    called: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is read and who is held still for it: `targets`, of which the first `own` are what is backed up; 0 where none of them is.

    `called` is what people call it. The first target gets the `hooks`. `pause_limit` in seconds.
    """

    called: str
    targets: Sequence[Target]
    parts: Sequence[Part]
    own: int = 1
    hold: Hold = Hold.PAUSE
    hooks: Hooks = field(default_factory=Hooks)
    pause_limit: float = PAUSE_LIMIT


@dataclass(slots=True)
class Gathered:
    """What was stored so far, and what has to be said about it. `moment` is the point in time that the files are of."""

    streams: list[StreamEntry] = field(default_factory=list)
    trees: list[TreeEntry] = field(default_factory=list)
    files: list[FileEntry] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    consistency: Consistency = Consistency.OFFLINE

    @property
    def size(self) -> int:
        """Bytes of all streams and files."""
        return sum(stream.size for stream in self.streams) + sum(tree.bytes_total for tree in self.trees)


def store_held(
    podman: Podman,
    held: Held,
    session: BackupSession,
    latest: Backup | None,
    gathered: Gathered,
    shown: Progress,
) -> None:
    """Read all parts into `gathered`: once while the containers run, and what changed meanwhile again while they are held still. Raises PodmanError."""
    previous = {part.name: None if latest is None else latest.manifest.file_tree(part.name) for part in held.parts}
    freeze = Freeze(
        podman,
        held.targets,
        backup=session.backup_id,
        hold=held.hold,
        hooks=held.hooks,
        pause_limit=held.pause_limit,
    )
    with freeze:
        states = {state(podman, target.id) for target in held.targets}
        if "running" in states and held.hold is not Hold.LIVE:
            shown.start(None, f"reading the files of {held.called} while it runs")
            for part, entry in _read(held.parts, previous, session, gathered.counts, [], shown):
                previous[part.name] = entry
            session.flush()
        freeze.prepare()
        with freeze.held():
            gathered.moment = datetime.now(UTC)
            shown.start(None, f"reading the files of {held.called}")
            for _, entry in _read(held.parts, previous, session, gathered.counts, gathered.warnings, shown):
                gathered.trees.append(entry)
    gathered.trees = [_as_read(tree, latest) for tree in gathered.trees]
    gathered.consistency = _consistency(freeze, states, held.hold)
    gathered.warnings += freeze.warnings
    if freeze.expired:
        gathered.warnings.append(
            f"{held.called} ran on after {format_duration(int(held.pause_limit))} of pause, before all was read: files are of different moments; "
            "allow a longer pause, or use --stop"
        )
    elif freeze.held_seconds is not None:
        word = "paused" if held.hold is Hold.PAUSE else "stopped"
        own = [target.name for target in held.targets[: held.own or None]]
        gathered.notes.append(
            f"{', '.join(own)} {'were' if len(own) > 1 else 'was'} {word} for {freeze.held_seconds:.2f} s"
        )
    others = [target.name for target in held.targets[held.own :]] if held.own else []
    if others and freeze.held_seconds is not None:
        gathered.notes.append(f"held still with it, since they share its volumes: {', '.join(others)}")


def _read(
    parts: Sequence[Part],
    previous: dict[str, TreeEntry | None],
    session: BackupSession,
    counts: Counts,
    warnings: list[str],
    shown: Progress,
) -> Iterator[tuple[Part, TreeEntry]]:
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


def _consistency(freeze: Freeze, states: set[str], hold: Hold) -> Consistency:
    """Return how the files belong together, where the containers were in `states` before. Programs that somebody has paused have not finished."""
    if freeze.expired:
        return Consistency.FUZZY
    if freeze.held_seconds is None and not states & {"running", "paused"}:
        return Consistency.OFFLINE
    if freeze.held_seconds is None and "running" in states:
        return Consistency.FUZZY
    if "paused" in states:
        return Consistency.CRASH
    if hold is Hold.STOP:
        return Consistency.OFFLINE
    return Consistency.APPLICATION if freeze.prepared else Consistency.CRASH


def manifest_of(
    repository: Repository,
    source: SourceInfo,
    latest: Backup | None,
    gathered: Gathered,
    suspicion: Suspicion,
    session: BackupSession,
    began: float,
) -> Manifest:
    """Return the manifest of the backup that `session` has stored since `began` (by time.monotonic)."""
    incremental = latest is not None and any(tree.kind == "incremental" for tree in gathered.trees)
    return Manifest(
        version=VERSION,
        backup=session.backup_id,
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
            gathered.counts,
            bytes_total=gathered.size,
            bytes_uploaded=session.bytes_uploaded,
            began=began,
            suspicion=suspicion,
        ),
        warnings=(*gathered.warnings, *suspicion.warnings),
        notes=(*gathered.notes, *suspicion.notes),
        tool=f"lab-backup {__version__}",
    )
