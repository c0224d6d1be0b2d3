"""Restoring whole VMs and single disks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab_backup.errors import LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.restore_files import NVRAM, TPM, DiskImage, Removals, abort, upload_files, write_files
from lab_backup.repository.backups import Backup
from lab_backup.repository.manifest import DiskEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.sources.libvirt import restore as libvirt_restore
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.restore_plan import Options, PlannedDisk, RestorePlan, SavedDisk
from lab_backup.targets.device import DeviceTarget
from lab_backup.targets.errors import translated
from lab_backup.units import format_size

if TYPE_CHECKING:
    from lab_backup.blocks import BlockWriter

DEFINITION = "domain.xml"
FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """A disk where it is now. `size` is what the guest sees, in bytes."""

    name: str
    path: str
    format: str
    size: int


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did. `vm` and `uuid` are None for an image; sizes in bytes."""

    backup: str
    source: str
    vm: str | None
    uuid: str | None
    started: bool
    disks: tuple[RestoredDisk, ...]
    bytes_total: int
    bytes_written: int
    duration_seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def restore_vm(
    repository: Repository,
    backup: Backup,
    *,
    connect: str,
    name: str | None = None,
    overwrite: bool = False,
    directory: Path | None = None,
    pool: str | None = None,
    format: str | None = None,  # noqa: A002 - the word that users know
    start: bool = False,
    trusted: bool = False,
    progress: Progress | None = None,
) -> RestoreResult:
    """Bring a VM back, under its own name or under `name` with a new identity; with `overwrite` in the place of the one that is there.

    On another host (`qemu+ssh`, `qemu+tls`) disks become volumes of its `pool`, and no VM can be overwritten. Disks go where the VM's were, unless `directory` or `pool` says otherwise, in `format` (`raw`, `qcow2`; None: each as it was).
    `trusted` keeps what the definition wants of the host beyond its disks. Until everything is written and checked nothing is defined or
    replaced; a failure removes what was made and leaves all else as it was. A VM that cannot be started afterwards stays, with a warning.

    Raises TargetExistsError, BusyError, NotFoundError, UsageError, AccessDeniedError, TargetFullError, DamagedError.
    """
    begun = time.monotonic()
    tell = progress or Silent()
    manifest = backup.manifest
    reader = Reader(repository)
    definition = manifest.file(DEFINITION)
    if manifest.source.kind != "vm" or definition is None:
        raise UsageError(
            f"backup {manifest.backup[:12]} is one of {manifest.source.name}, which is no VM",
            hint=f"restore it with: lab-backup restore {'image' if manifest.disks else manifest.source.kind}",
        )
    xml = reader.read_file(definition).decode(errors="replace")
    options = Options(name=name, overwrite=overwrite, directory=directory, pool=pool, format=format, trusted=trusted)
    with Hypervisor(connect) as hypervisor:
        saved = [SavedDisk(disk.name, disk.format) for disk in manifest.disks]
        has_nvram, has_tpm = manifest.file(NVRAM) is not None, manifest.file(TPM) is not None
        plan = libvirt_restore.plan_restore(hypervisor, xml, saved, options, nvram=has_nvram, tpm=has_tpm)
        for what in plan.replaces:
            tell.note(f"will be replaced: {what}")
        made: Removals = []
        try:
            if plan.remote:
                written = upload_files(hypervisor, reader, manifest, plan, made, tell)
            else:
                written = write_files(reader, manifest, plan, made, tell)
            warnings = libvirt_restore.complete(hypervisor, plan)
        except BaseException:
            abort(made)
            raise
        warnings += _start(hypervisor, plan) if start else []
    return RestoreResult(
        backup=manifest.backup,
        source=manifest.source.name,
        vm=plan.name,
        uuid=plan.uuid,
        started=start and not any(warning.startswith(_NOT_STARTED) for warning in warnings),
        disks=tuple(_restored(disk, manifest.disk(disk.target)) for disk in plan.disks),
        bytes_total=sum(disk.size for disk in manifest.disks),
        bytes_written=written,
        duration_seconds=time.monotonic() - begun,
        warnings=(*plan.warnings, *warnings),
        notes=plan.notes,
    )


_NOT_STARTED = "the VM was restored, but does not start: "


def _start(hypervisor: Hypervisor, plan: RestorePlan) -> list[str]:
    try:
        libvirt_restore.start(hypervisor, plan)
    except LabBackupError as error:
        return [f"{_NOT_STARTED}{error}"]
    return []


def _restored(disk: PlannedDisk, entry: DiskEntry | None) -> RestoredDisk:
    return RestoredDisk(disk.target, str(disk.file.path), disk.format, 0 if entry is None else entry.size)


def restore_image(
    repository: Repository,
    backup: Backup,
    *,
    to: Path,
    disk: str | None = None,
    format: str | None = None,  # noqa: A002 - the word that users know
    in_place: bool = False,
    progress: Progress | None = None,
) -> RestoreResult:
    """Write one disk of a backup to the new file `to`, or with `in_place` over the device or raw image that is there.

    `disk` may be left out where there is only one. `format` None takes the one that the suffix of `to` names (`.qcow2`, `.raw`, `.img`), or
    else the disk's own. The size of a qcow2 disk is rounded up to 512 bytes. A failure removes the new file; a device then holds a mixture.

    Raises TargetExistsError, NotFoundError, UsageError, BusyError, AccessDeniedError, TargetFullError, DamagedError.
    """
    begun = time.monotonic()
    tell = progress or Silent()
    entry = _choose(backup, disk)
    form = _format_of(to, entry, format, in_place=in_place)
    reader = Reader(repository)
    notes: list[str] = []
    if in_place:
        target: BlockWriter = DeviceTarget(to, entry.size)
        needed = entry.size
    else:
        with translated(to):
            is_device = to.is_block_device()
        if is_device:
            raise TargetExistsError(f"{to} is a device; it was left as it was", hint="say --in-place to overwrite it")
        image = DiskImage.plan(reader, entry, form)
        target, needed = image.target(to), image.needed
        if image.layout is not None and image.layout.virtual_size != entry.size:
            notes.append(
                f"the disk has {entry.size} bytes; in qcow2 it is rounded up to {image.layout.virtual_size}, by zeroes"
            )
    try:
        tell.start(entry.size, f"restoring {entry.name} of {backup.manifest.source.name}")
        reader.restore_disk(entry, target, advance=tell.advance)
        target.finish()
    except BaseException as error:
        abort([target.abort])
        if in_place and isinstance(error, LabBackupError):
            error.hint = f"{to} now holds a mixture of old and new data: restore it again. {error.hint or ''}".rstrip()
        raise
    return RestoreResult(
        backup=backup.manifest.backup,
        source=backup.manifest.source.name,
        vm=None,
        uuid=None,
        started=False,
        disks=(RestoredDisk(entry.name, str(to), form, entry.size),),
        bytes_total=entry.size,
        bytes_written=needed,
        duration_seconds=time.monotonic() - begun,
        warnings=(),
        notes=tuple(notes),
    )


def _choose(backup: Backup, disk: str | None) -> DiskEntry:
    disks = backup.manifest.disks
    listed = ", ".join(f"{entry.name} ({format_size(entry.size)})" for entry in disks) or "none"
    if disk is not None:
        found = backup.manifest.disk(disk)
        if found is None:
            raise NotFoundError(f"the backup has no disk {disk!r}", hint=f"its disks: {listed}")
        return found
    if not disks:
        source = backup.manifest.source
        raise UsageError(
            f"backup {backup.id[:12]} of {source.name} holds no disk",
            hint=f"restore it with: lab-backup restore {source.kind}",
        )
    if len(disks) != 1:
        raise UsageError(f"the backup has {len(disks)} disks", hint=f"say which one by --disk: {listed}")
    return disks[0]


def _format_of(to: Path, entry: DiskEntry, asked: str | None, *, in_place: bool) -> str:
    if asked not in (None, *FORMATS):
        raise UsageError(f"{asked!r} is not a format", hint="use qcow2 or raw")
    if in_place:
        if asked == "qcow2":
            raise UsageError(
                "a restore in place writes the disk itself, so its format is raw",
                hint="leave --format out, or restore into a new file",
            )
        return "raw"
    if asked is not None:
        return asked
    by_suffix = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}.get(to.suffix.lower())
    return by_suffix or (entry.format if entry.format in FORMATS else "raw")
