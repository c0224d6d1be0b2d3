"""One backup being written: disks and files go in, and at the end a manifest makes all of it a backup.

No lock is taken. Beside us others may write, delete and collect; what keeps this safe is in `docs/format/concurrency.md`: we never refer to a
condemned pack, look again every few minutes and before publishing, and save what was condemned meanwhile into packs of our own.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Self

import msgspec

from lab_backup.blocks import BlockReader
from lab_backup.errors import UsageError
from lab_backup.extent import Extent
from lab_backup.filetree import FileTree
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup, Backups
from lab_backup.repository.cache import CONDEMNED, DEAD, Location
from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.disk_writer import DiskWriter
from lab_backup.repository.envelope import Kind
from lab_backup.repository.errors import ChunkMissingError, DamagedError, LostRaceError, RepositoryError
from lab_backup.repository.file_tree_writer import FileTreeWriter, WrittenTree
from lab_backup.repository.immutability import Locks, promised
from lab_backup.repository.live_set import LiveSet
from lab_backup.repository.manifest import Entry, FileEntry, Manifest, StreamEntry, TreeEntry
from lab_backup.repository.marks import State
from lab_backup.repository.pack import PACKS, PackInfo, PackKind
from lab_backup.repository.packer import Packer
from lab_backup.repository.reader import MAX_FILE, Blob, Reader
from lab_backup.repository.repository import CONDEMNED as CONDEMNED_LISTS
from lab_backup.repository.repository import LEASES, NOWHERE, Repository
from lab_backup.repository.stream_writer import ByteSource, StreamWriter
from lab_backup.repository.tree import TreeRef
from lab_backup.repository.walk import Walk
from lab_backup.storage.base import ObjectExistsError, ObjectNotFoundError, StorageError
from lab_backup.units import format_size

# How often a running backup looks for condemned packs, and the longest from that look to the publication. The grace
# period must be longer than both, with room for lists that lag and clocks that differ.
LOOK_AGAIN = 600.0  # seconds
LISTED = 100  # objects that a store lists at no more than the cost of a look at one
# How far from a collection's survey and list a backup must have been published to be certain that the one saw the other:
# LOOK_AGAIN, and ten minutes by which a list may lag, with as much again to spare.
DOUBT = timedelta(minutes=40)


def new_backup_id() -> str:
    """Return a fresh backup id: 128 random bits, hexadecimal."""
    return secrets.token_hex(16)


class _Bytes:
    """A small file as a disk to read from."""

    readers = 1

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def extents(self) -> Iterator[Extent]:
        return iter([Extent(0, self.size)])

    def close(self) -> None:
        return


class BackupSession:
    """A backup on its way. A context manager; leaving it without `publish` leaves only garbage for the collector."""

    def __init__(
        self,
        repository: Repository,
        backup_id: str,
        *,
        threads: int | None = None,
        compression: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin the backup `backup_id` on `threads` threads."""
        self._repository = repository
        self._clock = clock
        self.backup_id = backup_id
        self._packer = Packer(repository, compression=compression)
        self._chunks = ChunkStore(repository, self._packer)
        self._disks = DiskWriter(repository, self._chunks, threads=threads)
        self._streams = StreamWriter(repository, self._chunks, threads=threads)
        self._reader = Reader(repository)
        self._trees = FileTreeWriter(repository, self._chunks, self._reader, threads=threads)
        self._own_trees: set[str | None] = set()  # the catalogues of trees that were written here
        self._backups = Backups(repository)
        self._lease = f"{LEASES}/{backup_id}"
        self._began: str | None = None  # by the storage's clock
        self._inherits = False
        self._period = timedelta()
        self._held_by: str | None = None
        self._looked = -LOOK_AGAIN

    def __enter__(self) -> Self:
        self._renew()
        try:
            self._repository.mend_config()
            # The repository may have been open for long: what is condemned or damaged by now must not be relied on.
            self._look()
            self._period = promised(self._repository)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._packer.close()
        # A lease that stays costs nothing: it expires. It must not hide why the backup failed.
        with suppress(StorageError):
            self._repository.storage.delete(self._lease)

    @property
    def bytes_uploaded(self) -> int:
        """Bytes sent to the storage so far: packs and index objects, whole."""
        return self._packer.bytes_uploaded

    def _renew(self) -> datetime:
        """Show that we are alive; return the time by the storage's clock, which goes on also where our own stands still."""
        storage = self._repository.storage
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "backup": self.backup_id, "began": self._began}
        self._repository.put_object(Kind.LEASE, self._lease, json.dumps(holder).encode())
        self._looked = self._clock()
        try:
            now = storage.stat(self._lease).modified
        except ObjectNotFoundError:  # a collector took the old one for stale
            now = self._repository.clock()
        self._began = self._began or now.isoformat()
        return now

    def pulse(self) -> None:
        """Call this often: every ten minutes it renews the lease and looks for condemned packs."""
        if self._clock() - self._looked > LOOK_AGAIN:
            self._secure()

    def write_disk(
        self, reader: BlockReader, changed: Iterable[Extent], *, parent: Entry | None, advance: Callable[[int], None]
    ) -> tuple[TreeRef, Counts]:
        """Store `changed` over the parent's disk (None: over zeroes); return the tree and what happened.

        Raises DamagedError where the parent's list cannot be read: store the disk whole then.
        """
        base = None
        if parent is not None:
            self._inherits = True
            base = self._reader.tree(parent.tree)
        return self._disks.write(reader, changed, parent=base, advance=advance, pulse=self.pulse)

    def write_file(self, name: str, data: bytes) -> FileEntry:
        """Store a small file. Raises UsageError for one that no reader would take."""
        if len(data) > MAX_FILE:
            raise UsageError(
                f"{name} has {format_size(len(data))}; a configuration file has at most {format_size(MAX_FILE)}"
            )
        source = _Bytes(data)
        tree, _ = self.write_disk(source, source.extents(), parent=None, advance=lambda _: None)
        return FileEntry(
            name=name, size=tree.size, chunk_size=tree.chunk_size, root=None if tree.root is None else tree.root.hex()
        )

    def write_stream(
        self, name: str, source: ByteSource, *, advance: Callable[[int], None] = lambda _: None
    ) -> tuple[StreamEntry, Counts]:
        """Store all bytes of `source`; return what the manifest is to say, and what happened. `advance` is told the bytes that were read."""
        return self._streams.write(name, source, advance=advance, pulse=self.pulse)

    def keep_stream(self, entry: StreamEntry) -> bool:
        """Take over a stream of an earlier backup in this repository as it is; False where a part of it is gone or damaged: it must be stored anew."""
        try:
            return all(self._chunks.rely_on(found.id) for found in Walk(self._reader).blobs(entry.stream))
        except DamagedError:
            return False

    def write_file_tree(
        self,
        name: str,
        tree: FileTree,
        previous: TreeEntry | None,
        *,
        began_ns: int | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> WrittenTree:
        """Store `tree`, reading only files that are not as they were in `previous`, which may also be an earlier pass of this session.

        `began_ns` is the time by the clock of the tree's file system (by default ours); `advance` is told the bytes of files that were dealt
        with. Where `previous` is damaged more is read, and `warnings` say so.
        """
        own = previous is not None and previous.catalogue.root in self._own_trees
        if own:
            # What this session stored can be read only from packs that are in the storage.
            self._packer.flush()
        written = self._trees.write(
            name, tree, previous, compact=not own, began_ns=began_ns, advance=advance, pulse=self.pulse
        )
        self._own_trees.add(written.entry.catalogue.root)
        return written

    # --- what comes from another repository as it is ---

    def inherit(self, backup_id: str) -> None:
        """Say that the backup relies on all that `backup_id`, in this repository, relies on; `publish` makes sure that it may."""
        self._inherits = True
        self._held_by = backup_id

    def needs(self, blob_id: bytes) -> bool:
        """Return whether the caller is to store this blob, and claim it for him; else the backup relies on the place where it is.

        For the thread that owns the session.
        """
        return not self._chunks.rely_on(blob_id) and self._packer.claim(blob_id)

    def store_blob(self, kind: PackKind, blob: Blob) -> int:
        """Store a blob that `needs` asked for; return the bytes that it takes. Any thread may call this."""
        return self._packer.store_packed(kind, blob.entry, blob.packed)

    @property
    def own_packs(self) -> list[PackInfo]:
        """The packs that were made for this backup and are findable."""
        return [self._repository.cache.pack(number) for number in sorted(self._packer.packs)]

    # --- what must not be collected under us ---

    def _secure(self) -> datetime:
        """Make sure that nothing we rely on is condemned; return when, by the storage's clock, the look that found it so began."""
        while True:
            # What was uploaded is watched from now on, however long its index object would have waited for more.
            self._packer.index_uploaded()
            began = self._renew()
            self._look()
            states = self._repository.cache.states
            used = self._used()
            if any(states[number] == DEAD for number in used):
                raise LostRaceError(
                    "data that this backup relied on was removed or found damaged while it ran",
                    hint="run the backup again",
                )
            condemned = {number for number in used if states[number] == CONDEMNED}
            if not condemned:
                return began
            self._rescue(condemned)

    def _look(self) -> None:
        """See what is condemned and damaged now. Raises DamagedError where nobody can tell."""
        self._repository.synchronise(written=frozenset(self._packer.indexes))
        for path, error in self._repository.unreadable.items():
            if path.startswith(f"{CONDEMNED_LISTS}/") and path not in self._repository.replaced:
                raise DamagedError(
                    f"{error}: it says which packs will be removed, so no backup can rely on any",
                    hint="run: lab-backup gc, which drops it, and then the backup again",
                )

    def _used(self) -> set[int]:
        return self._chunks.used_packs | self._packer.packs

    def _rescue(self, numbers: set[int]) -> None:
        """Store all that is only in these condemned packs once more, in packs of our own."""
        cache = self._repository.cache
        for number in numbers:
            info = cache.pack(number)
            here = []
            try:
                for entry in self._reader.pack_table(info):
                    place = cache.locate(entry.id)
                    if place is not None and place.pack == number:
                        here.append(Location(number, entry))
                    elif place is not None:
                        self._chunks.used_packs.add(place.pack)  # we rely on that one from now on
                for blob in self._reader.read_blobs(here, info.kind):
                    if self._packer.claim(blob.entry.id):
                        self._packer.store_packed(info.kind, blob.entry, blob.packed)
            except (ObjectNotFoundError, ChunkMissingError) as error:
                raise LostRaceError(
                    "data that this backup relied on was removed while it ran", hint="run the backup again"
                ) from error
        self._packer.flush()
        self._chunks.used_packs -= numbers
        self._packer.packs -= numbers

    def _walk_all(self, manifest: Manifest) -> None:
        """Take every pack that the backup refers to into what `_secure` watches.

        Raises LostRaceError where something is missing; it is recorded as damage, so that the next backup stores it again.
        """
        packs: set[str] = set()
        blobs: set[tuple[str, str]] = set()

        def missing(identity: bytes, _level: int | None, _offset: int, error: DamagedError) -> None:
            if not isinstance(error, ChunkMissingError):
                raise error
            place = self._reader.find(identity)
            if place is None:
                blobs.add((NOWHERE, identity.hex()))
            else:
                packs.add(self._repository.cache.pack(place.pack).id.hex())

        with LiveSet(self._repository.cache.directory.parent) as seen:
            walk = Walk(self._reader, seen=seen.add)
            for tree in manifest.lists:
                for found in walk.survey(tree, on_damage=missing):
                    place = self._reader.find(found.id)
                    if place is None:
                        blobs.add((NOWHERE, found.id.hex()))
                    else:
                        self._chunks.used_packs.add(place.pack)
        if packs or blobs:
            with suppress(StorageError):
                self._repository.record_damage(packs=packs, blobs=blobs)
            raise LostRaceError(
                "data that this backup took over from its parent is gone",
                hint="run the backup again: it reads what is missing anew",
            )

    def _prove(self) -> None:
        """Raise LostRaceError unless every pack that we refer to is in the storage, at its right size.

        One that is not, though nobody removed it, is recorded as damage: the next backup then stores again what was in it.
        """
        packs = {info.path: info for info in map(self._repository.cache.pack, sorted(self._used()))}
        doubtful = set(packs)
        if len(packs) * LISTED > len(self._repository.cache.states):
            # Packs go only long after they were condemned, so a list that lags by minutes shows none that is gone for us.
            listed = self._repository.storage.list(PACKS)
            doubtful -= {info.path for info in listed if info.path in packs and info.size == packs[info.path].size}
        sizes = self._repository.sizes(sorted(doubtful))
        lost = [packs[path] for path, size in sizes if size != packs[path].size]
        if lost:
            with suppress(StorageError):
                self._repository.record_damage(packs={info.id.hex() for info in lost}, blobs=set())
            raise LostRaceError(
                f"pack {lost[0].id.hex()}, which this backup relied on, is gone or cut off", hint="run the backup again"
            )

    def _is_held(self, parent: str | None) -> bool:
        """Whether the parent keeps alive all that we took over from it.

        It does while its manifest is there, unless it was published at about the time when a collection looked what is in use: that
        collection may have missed it, and the removal of what it condemned may miss us. Nor if it was published so late that its writer
        had to look at it once more, and perhaps died before he could.
        """
        if parent is None:
            return False
        path = manifests.path(parent)
        try:
            published = self._repository.storage.stat(path).modified
            payload = self._repository.get_object(Kind.MANIFEST, path)
            looked = manifests.decode(payload, parent, self._repository.config.id).looked
        except (ObjectNotFoundError, DamagedError):
            return False
        if looked is not None and (published - looked).total_seconds() > LOOK_AGAIN:
            return False
        return not any(
            (surveyed is None or surveyed - DOUBT <= published) and published <= made + DOUBT
            for surveyed, made in self._repository.condemnations()
        )

    # --- the end ---

    def flush(self) -> None:
        """Make everything written so far durable and findable."""
        self._packer.flush()

    def publish(self, manifest: Manifest) -> Backup:
        """Make the backup exist: this is the commit point. It returns when the backup is durable and whole.

        Repeating it with the same manifest is harmless. Raises LostRaceError, RepositoryError where the id is taken by another backup.
        """
        self.flush()
        looked = self._secure()
        if self._inherits and not self._is_held(self._held_by or manifest.parent):
            self._walk_all(manifest)
            looked = self._secure()
        self._prove()
        if self._clock() - self._looked > LOOK_AGAIN / 10:
            # Many packs, far away: look once more now rather than find out after the commit that it came late.
            looked = self._secure()
        manifest = msgspec.structs.replace(manifest, looked=looked, version=manifest.needed_version)
        payload = manifests.encode(manifest)
        path = manifests.path(manifest.backup)
        storage = self._repository.storage
        locks = Locks(self._repository, self._period)
        locks.extend((*self._packer.indexes, *map(self._pack_path, sorted(self._used()))), now=looked)
        try:
            storage.create(path, self._repository.seal(Kind.MANIFEST, path, payload))
        except ObjectExistsError:
            payload = self._repository.get_object(Kind.MANIFEST, path)
            there = manifests.decode(payload, manifest.backup, self._repository.config.id)
            if msgspec.structs.replace(there, looked=looked) != manifest:
                raise RepositoryError(f"there is another backup with the id {manifest.backup}") from None
            manifest = there
        if (storage.stat(path).modified - looked).total_seconds() > LOOK_AGAIN:
            self._vet(manifest)
        locks.extend([path], now=looked)
        return Backup(manifest, State(), manifests.checksum(payload))

    def _pack_path(self, number: int) -> str:
        return self._repository.cache.pack(number).path

    def _vet(self, manifest: Manifest) -> None:
        """Look again at all that a backup refers to which was published too long after the last look; withdraw it if anything is gone."""
        try:
            self._walk_all(manifest)
            self._secure()
            self._prove()
        except BaseException:
            self._backups.remove(manifest.backup)
            raise
