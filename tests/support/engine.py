"""What tests of the engine build from: disks and sources in memory, small repositories, and one-line backups and restores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lab_backup.blocks import Buffer
from lab_backup.extent import Extent
from lab_backup.operations.backup import run_backup
from lab_backup.operations.catalogue import BackupSummary
from lab_backup.repository.backups import Backups
from lab_backup.repository.config import DEFAULT_GRACE
from lab_backup.repository.create import create_repository
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.session import new_backup_id
from lab_backup.sources.source import ConfigurationFile, Consistency, DiskExport
from lab_backup.storage.base import StorageBackend
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB

CHUNK = 16 * KiB  # the smallest there is: tests need little data for many chunks


class MemoryDisk:
    """A disk in memory to read from. `reads` holds (offset, length) of every read."""

    def __init__(self, data: bytes, extents: Sequence[Extent] | None = None, *, readers: int = 4) -> None:
        """Present `data`; `extents` (by default one run of data) is what the source says of it."""
        self.data = data
        self.size = len(data)
        self.readers = readers
        self.reads: list[tuple[int, int]] = []
        self._extents = [Extent(0, len(data))] if extents is None else list(extents)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`."""
        self.reads.append((offset, len(buffer)))
        assert offset >= 0
        assert offset + len(buffer) <= self.size
        buffer[:] = self.data[offset : offset + len(buffer)]

    def extents(self) -> Iterator[Extent]:
        """Return what the test said."""
        return iter(self._extents)

    def close(self) -> None:
        """Do nothing."""


class MemoryTarget:
    """A disk in memory to restore to, which insists that each byte is accounted for exactly once."""

    writers = 4

    def __init__(self, size: int) -> None:
        """Begin with something that is not zero everywhere."""
        self.data = bytearray(b"\xee" * size)
        self.written = bytearray(size)
        self.zeroed = 0

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`."""
        self._claim(offset, len(data))
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make `length` bytes zero."""
        self._claim(offset, length)
        self.data[offset : offset + length] = bytes(length)
        self.zeroed += length

    def _claim(self, offset: int, length: int) -> None:
        assert length > 0
        assert offset + length <= len(self.data)
        assert not self.written.count(1, offset, offset + length), (
            f"some of {length} bytes at {offset} were written before"
        )
        self.written[offset : offset + length] = b"\x01" * length

    def finish(self) -> None:
        """Check that nothing was left out."""
        assert self.written.count(1) == len(self.data)

    def abort(self) -> None:
        """Do nothing."""


@dataclass
class MemoryExport:
    """A disk of a source. With `changes` it is read incrementally."""

    name: str
    reader: MemoryDisk
    changes: Sequence[Extent] | None = None
    identity: str = "disk-1"
    format: str = "raw"
    checkpoint: str | None = None
    full_reason: str | None = None

    @property
    def incremental(self) -> bool:
        """Whether only changes are to be read."""
        return self.changes is not None

    def changed(self) -> Iterator[Extent]:
        """Return the changes, or the whole disk."""
        return self.reader.extents() if self.changes is None else iter(self.changes)


@dataclass
class MemorySource:
    """A source in memory. `committed` says whether it was told that the backup is durable."""

    disks: list[DiskExport]
    name: str = "guest"
    configuration: list[ConfigurationFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = "vm"
    host: str = "qemu:///test"
    consistency: Consistency = Consistency.CRASH
    committed: bool = False

    @property
    def source_id(self) -> str:
        """The same for all sources of one name."""
        return f"id-of-{self.name}"

    def check(self) -> None:
        """Never fail."""

    def commit(self) -> None:
        """Note it."""
        self.committed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return


def new_repository(
    storage: StorageBackend,
    cache: Path,
    *,
    chunk_size: int = CHUNK,
    compression: str = "zstd:1",
    passphrase: str | None = None,
    grace: int = DEFAULT_GRACE,
    identity: bytes | None = None,
) -> Repository:
    """Make a repository in the empty `storage` and open it. Without a passphrase it needs no time for key derivation."""
    create_repository(
        storage,
        passphrase=passphrase,
        chunk_size=chunk_size,
        compression=compression,
        grace=grace,
        identity=identity,
    )
    return open_repository(storage, passphrase=passphrase, cache_directory=cache)


def reopen(repository: Repository, cache: Path) -> Repository:
    """Open the same storage once more with another cache, as another host would, without deriving keys again."""
    return open_repository(
        repository.storage,
        passphrase=None if repository.config.encryption == "none" else repository.keys.recovery_key(),
        cache_directory=cache,
    )


def back_up(
    repository: Repository,
    content: bytes | MemoryDisk | Mapping[str, bytes | MemoryDisk],
    *,
    changes: Iterable[Extent] | None = None,
    name: str = "guest",
    files: Mapping[str, bytes] | None = None,
    backup_id: str | None = None,
) -> BackupSummary:
    """Back up a disk `vda`, or several by name. With `changes` (for all disks) incrementally over the newest backup of `name`."""
    named = content if isinstance(content, Mapping) else {"vda": content}
    runs = None if changes is None else list(changes)
    disks: list[DiskExport] = [
        MemoryExport(disk, data if isinstance(data, MemoryDisk) else MemoryDisk(data), runs)
        for disk, data in named.items()
    ]
    configuration = [ConfigurationFile(file, data) for file, data in (files or {}).items()]
    source = MemorySource(disks, name=name, configuration=configuration)
    latest = Backups(repository).latest(source.kind, source.source_id) if runs is not None else None
    return run_backup(repository, source, latest=latest, backup_id=backup_id or new_backup_id())


def restored(repository: Repository, backup_id: str, disk: str = "vda") -> bytes:
    """Return the content of a disk as a restore writes it, every byte of it accounted for."""
    entry = Backups(repository).find(backup_id).manifest.disk(disk)
    assert entry is not None
    target = MemoryTarget(entry.size)
    Reader(repository).restore_disk(entry, target, advance=lambda _: None)
    target.finish()
    return bytes(target.data)


def copy_of(storage: StorageBackend) -> MemoryStorage:
    """Return a memory store with the same objects, to be damaged at will."""
    copy = MemoryStorage()
    for info in storage.list():
        copy.upload(info.path, storage.read(info.path))
    return copy


def flip(storage: StorageBackend, path: str, position: int, bit: int = 0) -> None:
    """Flip one bit of an object's byte at `position` (negative: from the end)."""
    data = bytearray(storage.read(path))
    data[position] ^= 1 << bit
    storage.upload(path, data)
