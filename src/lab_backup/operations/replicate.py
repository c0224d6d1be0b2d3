"""Copying backups to another repository: with its own keys, only what it lacks, each byte checked on the way.

A copy keeps the id of its original, so an interrupted run goes on where it was, and both repositories answer to the same names. Where both give
chunks the same ids (`repo init --like`), stored blobs are copied; otherwise the disks are read and written anew. Either way an
increment costs what changed since the newest older backup of the same source that the target has.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from operator import eq

import msgspec

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.extent import Extent
from lab_backup.operations.lifecycle import who
from lab_backup.operations.progress import Progress, Silent
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.blob_copier import BlobCopier
from lab_backup.repository.cache import Location
from lab_backup.repository.errors import ChunkMissingError, DamagedError, LostRaceError
from lab_backup.repository.manifest import DiskEntry, Entry, Manifest, StreamEntry, TreeEntry
from lab_backup.repository.pack import PackInfo, PackKind
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession
from lab_backup.repository.stored_disk import StoredDisk
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.repository.stored_stream import PieceSource, StoredStream
from lab_backup.repository.tree import TreeReader
from lab_backup.repository.tree_difference import differences
from lab_backup.repository.walk import Walk


@dataclass(frozen=True, slots=True)
class ReplicatedBackup:
    """A backup that was copied. `bytes_stored` is what the target grew by, `blobs` how many chunks and nodes were copied as they are."""

    backup: str
    source: str
    time: str
    bytes_stored: int
    blobs: int


@dataclass(frozen=True, slots=True)
class FailedBackup:
    """A backup that could not be copied, and why. `damaged`: something of it is damaged or missing at its origin."""

    backup: str
    source: str
    error: str
    damaged: bool


@dataclass(frozen=True, slots=True)
class ReplicateResult:
    """What happened: copied now, there already, not possible."""

    copied: tuple[ReplicatedBackup, ...]
    present: tuple[str, ...]
    failed: tuple[FailedBackup, ...]
    bytes_stored: int


def replicate(
    source: Repository,
    target: Repository,
    backups: Sequence[str] = (),
    *,
    source_name: str | None = None,
    read_back: bool = False,
    progress: Progress | None = None,
) -> ReplicateResult:
    """Copy backups from `source` to `target`, oldest first: those named, those of `source_name`, or all that are not deleted.

    What the target has already is passed over. Protection, archive flag and tags go along. A damaged backup is reported and does not keep the others
    from being copied. With `read_back`, what was stored is read from the target again and checked before the backup counts as copied.
    Raises UsageError, NotFoundError, and what the storages raise.
    """
    if source.id == target.id:
        raise UsageError("both addresses are the same repository, or one is a copy of the other's files")
    shown = progress or Silent()
    here, there = Backups(source), Backups(target)
    chosen = _chosen(here, backups, source_name)
    present = {backup.id for backup in there.all()}
    copied: list[ReplicatedBackup] = []
    failed: list[FailedBackup] = []
    for backup in chosen:
        if backup.id in present:
            continue
        manifest = backup.manifest
        size = sum(entry.size for entry in manifest.entries)
        shown.start(size, f"copying {manifest.source.name} of {manifest.time[:16]}")
        try:
            copied.append(_Replication(source, target, backup, shown, read_back=read_back).run())
        except (DamagedError, LostRaceError) as error:
            failed.append(
                FailedBackup(backup.id, manifest.source.name, str(error), damaged=isinstance(error, DamagedError))
            )
    failed += [
        FailedBackup(path.rpartition("/")[2], "", str(error), damaged=isinstance(error, DamagedError))
        for path, error in here.damaged.items()
        if not backups and path.startswith("manifests/")
    ]
    return ReplicateResult(
        copied=tuple(copied),
        present=tuple(backup.id for backup in chosen if backup.id in present),
        failed=tuple(failed),
        bytes_stored=sum(item.bytes_stored for item in copied),
    )


def _chosen(here: Backups, specs: Sequence[str], name: str | None) -> list[Backup]:
    everything = here.all()
    if specs:
        ids = {here.find(spec).id for spec in specs}
        return [backup for backup in everything if backup.id in ids]
    alive = [backup for backup in everything if backup.state.deleted is None]
    if name is None:
        return alive

    def names(backup: Backup) -> set[str]:
        origin = backup.manifest.source
        return {origin.name, origin.id, f"{origin.kind}/{origin.name}", f"{origin.kind}/{origin.id}"}

    found = [backup for backup in alive if name in names(backup)]
    if not found:
        raise NotFoundError(f"there is no backup of {name} to copy", hint="see: lab-backup list")
    return found


class _Replication:
    """One backup on its way from one repository to the other."""

    def __init__(
        self, source: Repository, target: Repository, backup: Backup, progress: Progress, *, read_back: bool
    ) -> None:
        self._source = source
        self._target = target
        self._backup = backup
        self._progress = progress
        self._read_back = read_back
        self._reader = Reader(source)
        self._same_ids = source.keys.identity == target.keys.identity
        self._base = self._newest_common()

    def _newest_common(self) -> tuple[Manifest, Manifest] | None:
        """Return the newest older backup of this source that both have: its manifests here and there.

        None also where damage is known in the target: then all is looked at, and what is damaged there is stored again.
        """
        if self._target.has_damage:
            return None
        own = self._backup.manifest
        here = {backup.id: backup.manifest for backup in Backups(self._source).all()}
        for other in reversed(Backups(self._target).all()):
            manifest = other.manifest
            same = (manifest.source.kind, manifest.source.id) == (own.source.kind, own.source.id)
            if same and manifest.when < own.when and other.state.deleted is None and other.id in here:
                return here[other.id], manifest
        return None

    def run(self) -> ReplicatedBackup:
        manifest = self._backup.manifest
        with BackupSession(self._target, manifest.backup) as session:
            copy = self._copy_blobs if self._same_ids else self._copy_content
            copied, blobs = copy(session)
            session.flush()
            if self._read_back:
                self._check(session.own_packs)
            session.publish(msgspec.structs.replace(copied, repository=self._target.config.id, looked=None))
            stored = session.bytes_uploaded
        self._copy_state()
        return ReplicatedBackup(manifest.backup, manifest.source.name, manifest.time, stored, blobs)

    def _old(self, entry: Entry) -> tuple[Entry, Entry] | None:
        """Return the same disk or file in the common backup, here and there, if it is comparable."""
        if self._base is None:
            return None
        here, there = self._base
        one = here.disk(entry.name) if isinstance(entry, DiskEntry) else here.file(entry.name)
        other = there.disk(entry.name) if isinstance(entry, DiskEntry) else there.file(entry.name)
        if one is None or other is None or other.size != entry.size:
            return None
        return (one, other) if (one.size, one.chunk_size) == (entry.size, entry.chunk_size) else None

    # --- equal ids ---

    def _copy_blobs(self, session: BackupSession) -> tuple[Manifest, int]:
        """Copy what differs from the common backup as it is stored: blobs, whatever they are part of."""
        manifest = self._backup.manifest
        if self._base is not None:
            session.inherit(self._base[1].backup)
        with BlobCopier(self._reader, session) as copier:
            for entry in (*manifest.disks, *manifest.files):
                done = 0
                for found in differences(self._reader.tree(entry.tree), self._old_tree(entry)):
                    if found.id is not None and found.level is None:
                        copier.want(PackKind.DATA, found.id, partial(eq, found.length))
                    elif found.id is not None:
                        copier.want(PackKind.TREE, found.id)
                    if found.level is None or found.id is None:
                        self._progress.advance(found.length)
                        done += found.length
                    session.pulse()
                self._progress.advance(entry.size - done)
            walk = Walk(self._reader, every=True)
            for stream in (stream for entry in manifest.streamed for stream in entry.lists):
                for place in walk.blobs(stream):
                    if place.level is not None:
                        copier.want(PackKind.TREE, place.id)
                    else:
                        copier.want(PackKind.DATA, place.id, place.fits)
                        self._progress.advance(place.length)
                    session.pulse()
            copier.flush()
        return manifest, copier.blobs

    def _old_tree(self, entry: Entry) -> TreeReader | None:
        pair = self._old(entry)
        # Only a tree that is the very same in both may stand for what the target holds.
        return self._reader.tree(pair[0].tree) if pair is not None and pair[0].tree == pair[1].tree else None

    # --- other ids ---

    def _copy_content(self, session: BackupSession) -> tuple[Manifest, int]:
        """Read what differs from the common backup and store it as a backup of a disk would be."""
        manifest = self._backup.manifest
        disks = tuple(self._copy_disk(session, disk) for disk in manifest.disks)
        files = tuple(session.write_file(file.name, self._reader.read_file(file)) for file in manifest.files)
        streams = tuple(self._copy_stream(session, stream) for stream in manifest.streams)
        trees = tuple(self._copy_tree(session, tree) for tree in manifest.trees)
        return msgspec.structs.replace(manifest, disks=disks, files=files, streams=streams, trees=trees), 0

    def _copy_disk(self, session: BackupSession, disk: DiskEntry) -> DiskEntry:
        pair = self._old(disk)
        old = None if pair is None else self._reader.tree(pair[0].tree)
        if pair is not None and self._base is not None:
            session.inherit(self._base[1].backup)
        tree, _ = session.write_disk(
            StoredDisk(self._reader, disk),
            self._changed(disk, old),
            parent=None if pair is None else pair[1],
            advance=self._progress.advance,
        )
        root = None if tree.root is None else tree.root.hex()
        return msgspec.structs.replace(disk, chunk_size=tree.chunk_size, root=root)

    def _copy_stream(self, session: BackupSession, stream: StreamEntry) -> StreamEntry:
        """Read all of a stream; what the target has of it is not stored again."""
        with closing(StoredStream(self._reader, stream.stream).read()) as pieces:
            copy, _ = session.write_stream(stream.name, PieceSource(pieces), advance=self._progress.advance)
        return msgspec.structs.replace(stream, root=copy.root, chunks=copy.chunks)

    def _copy_tree(self, session: BackupSession, tree: TreeEntry) -> TreeEntry:
        """Read all of a tree; what the target has of it is not stored again.

        Files are not taken over from an earlier copy: that they look alike there does not prove that their contents are what they were here.
        """
        copy = session.write_file_tree(
            tree.name,
            StoredFileTree(self._reader, tree),
            None,
            began_ns=tree.began_ns,
            advance=self._progress.advance,
        ).entry
        return msgspec.structs.replace(tree, catalogue=copy.catalogue, contents=copy.contents, chunks=copy.chunks)

    def _changed(self, disk: DiskEntry, old: TreeReader | None) -> Iterator[Extent]:
        for found in differences(self._reader.tree(disk.tree), old):
            if found.final:
                yield Extent(found.offset, found.length, zero=found.id is None)

    # --- afterwards ---

    def _check(self, packs: Sequence[PackInfo]) -> None:
        """Read packs back from the target. Raises DamagedError."""
        reader = Reader(self._target)
        for info in packs:
            number = self._target.cache.pack_number(info.id)
            if number is None:
                raise ChunkMissingError(f"pack {info.id.hex()}, which was just written, is gone")
            locations = [Location(number, entry) for entry in reader.pack_table(info)]
            for _ in reader.read_blobs(locations, info.kind):
                pass

    def _copy_state(self) -> None:
        """Give the copy the protection, archive flag and tags of its original."""
        state, backups = self._backup.state, Backups(self._target)
        time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if state.protected:
            backups.mark(self._backup.id, "protected", True, time=time, by=who())
        if state.archived:
            backups.mark(self._backup.id, "archived", True, time=time, by=who())
        if state.tags:
            backups.mark(self._backup.id, "tags", list(state.tags), time=time, by=who())
