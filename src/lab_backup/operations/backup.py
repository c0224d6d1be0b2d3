"""Backing up: from an open source into the repository, whatever the source is."""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lab_backup import __version__
from lab_backup.extent import Extent, total, union
from lab_backup.operations.catalogue import BackupSummary, summary
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.statistics import statistics_of
from lab_backup.operations.suspicion import protect_last_good, suspect
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.chunk_store import Counts
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import VERSION, DiskEntry, Manifest, SourceInfo
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.repository.tree import FAN_OUT, TreeReader, TreeRef
from lab_backup.repository.walk import Walk
from lab_backup.sources.image.source import open_image
from lab_backup.sources.libvirt.plan import DiskPlan
from lab_backup.sources.libvirt.source import identify_vm, open_vm
from lab_backup.sources.libvirt.source import plan_vm as plan_domain
from lab_backup.sources.source import DiskExport, OpenSource, Previous, PreviousDisk, Quiesce

# Chunks that the bitmap calls unchanged and that are read all the same, to catch one that lies. Few, so that a small
# increment stays small; a bitmap that misses 1 % of a disk is caught after some ten backups, one that misses all at once.
SAMPLES = 8


def backup_vm(
    repository: Repository,
    name: str,
    *,
    connect: str,
    disks: Sequence[str] = (),
    full: bool = False,
    quiesce: Quiesce = Quiesce.AUTO,
    scratch_directory: Path | None = None,
    backup_id: str | None = None,
    progress: Progress | None = None,
) -> BackupSummary:
    """Back up the VM `name` on the host `connect`, incrementally where its last backup here allows it.

    `disks` limits it to some of them. With a `backup_id` that was published already, that backup is returned and nothing is
    done. Raises LabBackupError; then the guest runs as before and the repository holds nothing but garbage of ours.
    """
    uuid, _ = identify_vm(name, connect)
    latest = None if full else Backups(repository).latest("vm", uuid)
    identity = backup_id or new_backup_id()
    source = open_vm(
        name,
        connect=connect,
        repository_id=repository.config.id,
        backup_id=identity,
        disks=disks,
        quiesce=quiesce,
        full=full,
        previous=_previous(latest),
        scratch_directory=scratch_directory,
    )
    return run_backup(repository, source, latest=latest, backup_id=identity, progress=progress)


def plan_vm(
    repository: Repository, name: str, *, connect: str, disks: Sequence[str] = (), full: bool = False
) -> list[DiskPlan]:
    """Return what a backup of the VM would read, disk by disk. Changes nothing."""
    uuid, _ = identify_vm(name, connect)
    latest = None if full else Backups(repository).latest("vm", uuid)
    return plan_domain(name, connect=connect, disks=disks, full=full, previous=_previous(latest))


def backup_image(
    repository: Repository,
    path: Path,
    *,
    name: str | None = None,
    format: str | None = None,  # noqa: A002  the word that users know
    progress: Progress | None = None,
) -> BackupSummary:
    """Back up a raw or qcow2 file or a block device. All of it is read, what is known already is not stored again."""
    source = open_image(path, name=name, format=format)
    return run_backup(repository, source, latest=None, backup_id=new_backup_id(), progress=progress)


def _previous(latest: Backup | None) -> Previous | None:
    if latest is None:
        return None
    disks = {
        disk.name: PreviousDisk(disk.name, disk.size, disk.identity, disk.checkpoint) for disk in latest.manifest.disks
    }
    return Previous(latest.id, latest.manifest.source.id, disks)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to read of one disk. `parent` is the disk in the last backup where only changes are read."""

    export: DiskExport
    parent: DiskEntry | None
    healing: list[Extent]
    reason: str | None

    def changed(self) -> Iterator[Extent]:
        if self.parent is None:
            return self.export.reader.extents()
        return union(self.export.changed(), iter(self.healing)) if self.healing else self.export.changed()


def run_backup(
    repository: Repository,
    opened: AbstractContextManager[OpenSource] | OpenSource,
    *,
    latest: Backup | None,
    backup_id: str,
    progress: Progress | None = None,
) -> BackupSummary:
    """Store an open source as the backup `backup_id`; incremental disks are laid over those of `latest`.

    The source is left as it was found, whatever happens; it is told of the success only after the backup is durable.
    """
    shown = progress or Silent()
    backups = Backups(repository)
    if backups.exists(backup_id):
        return summary(backups.find(backup_id))
    began = time.monotonic()
    with BackupSession(repository, backup_id) as session, opened as source:
        moment = datetime.now(UTC)
        warnings: list[str] = []
        plans = [_plan(repository, export, latest, warnings) for export in source.disks]
        shown.start(sum(total(plan.changed()) for plan in plans), f"backing up {source.name}")
        disks = []
        counts = Counts()
        for plan in plans:
            entry, done = _store_disk(session, plan, warnings, shown)
            counts.add(done)
            disks.append(entry)
            source.check()
        files = tuple(session.write_file(file.name, file.data) for file in source.configuration)
        session.flush()
        source.check()
        info = SourceInfo(kind=source.kind, id=source.source_id, name=source.name, host=source.host)
        suspicion = suspect(backups, info, counts, sum(disk.size for disk in disks))
        warnings += suspicion.warnings
        manifest = Manifest(
            version=VERSION,
            backup=backup_id,
            repository=repository.config.id,
            time=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            source=info,
            kind="incremental" if any(disk.kind == "incremental" for disk in disks) else "full",
            consistency=source.consistency,
            parent=latest.id if latest and any(disk.kind == "incremental" for disk in disks) else None,
            disks=tuple(disks),
            files=files,
            statistics=statistics_of(
                counts,
                bytes_total=sum(disk.size for disk in disks),
                bytes_uploaded=session.bytes_uploaded,
                began=began,
                suspicion=suspicion,
            ),
            warnings=(*source.warnings, *warnings),
            notes=(*source.notes, *suspicion.notes),
            tool=f"lab-backup {__version__}",
        )
        backup = session.publish(manifest)
        source.commit()
    unprotected = protect_last_good(backups, suspicion, backup_id)
    # What went wrong after the backup was safe is told, but the manifest cannot change any more.
    late = tuple(text for text in source.warnings if text not in manifest.warnings)
    noted = tuple(text for text in source.notes if text not in manifest.notes)
    result = summary(backup)
    return replace(result, warnings=(*result.warnings, *late, *unprotected), notes=(*result.notes, *noted))


def _plan(repository: Repository, export: DiskExport, latest: Backup | None, warnings: list[str]) -> _Plan:
    """Decide what to read of a disk: the changes if the last backup can be trusted and read, else all of it."""
    parent = latest.manifest.disk(export.name) if latest and export.incremental else None
    if parent is None or parent.size != export.reader.size:
        return _Plan(export, None, [], export.full_reason)
    tree = Reader(repository).tree(parent.tree)
    try:
        lie = _find_lie(repository, export, tree)
        healing = _damaged_ranges(repository, parent)
    except DamagedError as error:
        warnings.append(f"{export.name}: the last backup is damaged ({error}); the disk was read whole")
        return _Plan(export, None, [], "the last backup is damaged")
    if lie is not None:
        warnings.append(
            f"{export.name}: the hypervisor's list of changed blocks missed a change at byte {lie}; the disk was read whole. "
            "Backups made since the last full one may be wrong: verify them, and look for storage errors on the host"
        )
        return _Plan(export, None, [], "the dirty bitmap missed a change")
    return _Plan(export, parent, healing, None)


def _find_lie(repository: Repository, export: DiskExport, tree: TreeReader) -> int | None:
    """Return where the disk differs from the last backup although the bitmap calls it unchanged, or None.

    Reads a few chunks at random, of those that hold data.
    """
    chunk_size, size = tree.tree.chunk_size, tree.tree.size
    sample = sorted({chunk for chunk in (_random_chunk(tree) for _ in range(SAMPLES)) if chunk is not None})
    changed = export.changed()
    extent = next(changed, None)
    for chunk, identity in sample:
        start, end = chunk * chunk_size, min((chunk + 1) * chunk_size, size)
        while extent is not None and extent.end <= start:
            extent = next(changed, None)
        if extent is not None and extent.offset < end:
            continue
        buffer = bytearray(end - start)
        export.reader.read_into(start, memoryview(buffer))
        if repository.chunk_id(buffer) != identity:
            return start
    return None


def _random_chunk(tree: TreeReader) -> tuple[int, bytes] | None:
    """Return number and id of a random chunk that holds data; None in an empty tree."""
    choose = random.SystemRandom()
    index = 0
    for level in reversed(range(tree.tree.levels)):
        children = [(slot, child) for slot, child in enumerate(tree.children(level, index)) if child is not None]
        if not children:
            return None
        slot, child = choose.choice(children)
        index = index * FAN_OUT + slot
        if level == 0:
            return index, child
    return None


def _damaged_ranges(repository: Repository, parent: DiskEntry) -> list[Extent]:
    """Return where the last backup's disk relies on chunks that are known to be damaged. Raises DamagedError for a tree node."""
    cache = repository.cache
    if not repository.has_damage:
        return []
    ranges = []
    tree: TreeRef = parent.tree
    with cache.snapshot() as get:
        for identity, level, offset, length, _ in Walk(Reader(repository), every=True).blobs(tree):
            if cache.usable(identity, get(identity)) is None:
                if level is not None:
                    raise DamagedError(f"tree node {identity.hex()[:16]} is known to be damaged")
                ranges.append(Extent(offset, length))
    return sorted(ranges)


def _store_disk(
    session: BackupSession, plan: _Plan, warnings: list[str], progress: Progress
) -> tuple[DiskEntry, Counts]:
    export, reason = plan.export, plan.reason
    parent = plan.parent
    changed: Iterable[Extent] = plan.changed()
    try:
        tree, counts = session.write_disk(export.reader, changed, parent=parent, advance=progress.advance)
    except DamagedError as error:
        if parent is None:
            raise
        warnings.append(f"{export.name}: the last backup is damaged ({error}); the disk was read whole")
        parent, reason = None, "the last backup is damaged"
        progress.start(export.reader.size, f"reading {export.name} whole")
        tree, counts = session.write_disk(export.reader, export.reader.extents(), parent=None, advance=progress.advance)
    entry = DiskEntry(
        name=export.name,
        size=tree.size,
        chunk_size=tree.chunk_size,
        root=None if tree.root is None else tree.root.hex(),
        format=export.format,
        identity=export.identity,
        checkpoint=export.checkpoint,
        kind="full" if parent is None else "incremental",
        reason=reason,
        bytes_read=counts.bytes_read,
        bytes_stored=counts.bytes_stored,
    )
    return entry, counts
