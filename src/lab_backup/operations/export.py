"""Exporting a backup as a tar file that needs no Lab Backup to be read: qcow2 disks, the definition, and the manifest as JSON."""

import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lab_backup.blocks import Buffer
from lab_backup.errors import UsageError
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.qcow2_stream import qcow2_layout, qcow2_stream
from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.targets.new_file import NewFile
from lab_backup.units import MiB

MANIFEST = "manifest.json"
_BUFFER = 1 * MiB  # small parts are gathered, so that writing a chunk of 4 KiB is not a call to the kernel


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote: the file's `members` in order, and its bytes."""

    backup: str
    source: str
    path: str
    members: tuple[str, ...]
    bytes_written: int
    duration_seconds: float


def export_tar(repository: Repository, backup: Backup, to: Path, *, progress: Progress | None = None) -> ExportResult:
    """Write the backup to the new file `to`, which appears when it is whole; a failure leaves nothing.

    Raises TargetExistsError, TargetFullError, AccessDeniedError, DamagedError; UsageError for a backup of trees of files.
    """
    begun = time.monotonic()
    tell = progress or Silent()
    manifest = backup.manifest
    if manifest.streamed:
        raise UsageError(
            f"backup {manifest.backup[:12]} of {manifest.source.name} holds trees of files, which export does not write",
            hint=f"restore it with: lab-backup restore {manifest.source.kind}, or single files of it with: lab-backup restore files",
        )
    reader = Reader(repository)
    names = [MANIFEST, *(file.name for file in manifest.files), *(f"{disk.name}.qcow2" for disk in manifest.disks)]
    if len(set(names)) != len(names):
        raise DamagedError("the backup holds two things of one name", hint="it was forged")
    layouts = [qcow2_layout(reader, disk) for disk in manifest.disks]
    files = [(MANIFEST, msgspec.json.format(manifests.encode(manifest)))]
    files += [(file.name, reader.read_file(file)) for file in manifest.files]
    payload = sum(len(data) for _, data in files) + sum(layout.file_size for layout in layouts)
    target = NewFile(to, needed=payload)
    try:
        tell.start(payload, f"exporting {manifest.source.name}")
        archive = _Archive(target, int(manifest.when.timestamp()), tell)
        for name, data in files:
            archive.begin(name, len(data))
            archive.add(data)
            archive.end()
        for disk, layout in zip(manifest.disks, layouts, strict=True):
            archive.begin(f"{disk.name}.qcow2", layout.file_size)
            for part in qcow2_stream(reader, disk, layout):
                archive.add(part)
            archive.end()
        size = archive.finish()
        target.publish()
    except BaseException:
        target.discard()
        raise
    return ExportResult(
        backup=manifest.backup,
        source=manifest.source.name,
        path=str(to),
        members=tuple(names),
        bytes_written=size,
        duration_seconds=time.monotonic() - begun,
    )


class _Archive:
    """Writes a POSIX tar (pax) of members whose size is known beforehand, front to back."""

    def __init__(self, target: NewFile, when: int, tell: Progress) -> None:
        self._target = target
        self._when = when
        self._tell = tell
        self._at = 0
        self._held = bytearray()

    def begin(self, name: str, size: int) -> None:
        """Begin a member of `size` bytes."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size, self._when, 0o600
        self._put(info.tobuf(tarfile.PAX_FORMAT))

    def add(self, data: Buffer) -> None:
        """Add bytes to the member."""
        self._put(data)
        self._tell.advance(memoryview(data).nbytes)

    def end(self) -> None:
        """End the member."""
        self._put(bytes(-(self._at + len(self._held)) % tarfile.BLOCKSIZE))

    def finish(self) -> int:
        """End the archive; return its bytes."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-(self._at + len(self._held)) % tarfile.RECORDSIZE))
        self._flush()
        return self._at

    def _put(self, data: Buffer) -> None:
        self._held += data
        if len(self._held) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._target.write(self._at, self._held)
        self._at += len(self._held)
        self._held = bytearray()
