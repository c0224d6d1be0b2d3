"""Restoring whole VMs and single disks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab_backup.blocks import BlockWriter
from lab_backup.errors import LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.extent import total
from lab_backup.operations.progress import Progress, Silent
from lab_backup.qcow2.layout import Layout
from lab_backup.repository.backups import Backup
from lab_backup.repository.manifest import DiskEntry
from lab_backup.repository.reader import Piece, Reader
from lab_backup.repository.repository import Repository
from lab_backup.sources.libvirt import restore as libvirt_restore
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.restore import Options, PlannedDisk, PlannedFile, RestorePlan, SavedDisk
from lab_backup.sources.libvirt.tpm_state import unpack_state
from lab_backup.targets.device import DeviceTarget
from lab_backup.targets.new_file import NewFile, Owner, check_space
from lab_backup.targets.qcow2_file import Qcow2Target
from lab_backup.targets.raw_file import RawFileTarget
from lab_backup.targets.read_back import check_image
from lab_backup.units import format_size

DEFINITION = "domain.xml"
NVRAM = "nvram"
TPM = "tpm.tar"
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


@dataclass(frozen=True, slots=True)
class _Image:
    """A disk of the backup, and the image file to make of it. `layout` is None for raw; `needed` is the file's bytes with data."""

    entry: DiskEntry
    format: str
    layout: Layout | None
    needed: int

    @classmethod
    def plan(cls, reader: Reader, entry: DiskEntry, form: str) -> "_Image":
        if form == "qcow2":
            layout = Layout(entry.size, reader.allocated(entry))
            return cls(entry, form, layout, layout.file_size)
        return cls(entry, form, None, total(reader.allocated(entry), zero=False))

    def target(self, path: Path, owner: tuple[int, int] | None = None, mode: int = 0o600) -> BlockWriter:
        who = None if owner is None else Owner(*owner)
        if self.layout is not None:
            return Qcow2Target(path, self.layout, owner=who, mode=mode)
        return RawFileTarget(path, self.entry.size, needed=self.needed, owner=who, mode=mode)


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

    Disks go where the VM's were, unless `directory` or `pool` says otherwise, in `format` (`raw`, `qcow2`; None: each as it was).
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
            hint="restore it with: lab-backup restore image",
        )
    xml = reader.read_file(definition).decode(errors="replace")
    nvram, tpm = manifest.file(NVRAM), manifest.file(TPM)
    options = Options(name=name, overwrite=overwrite, directory=directory, pool=pool, format=format, trusted=trusted)
    with Hypervisor(connect) as hypervisor:
        saved = [SavedDisk(disk.name, disk.format) for disk in manifest.disks]
        plan = libvirt_restore.plan_restore(
            hypervisor, xml, saved, options, nvram=nvram is not None, tpm=tpm is not None
        )
        for what in plan.replaces:
            tell.note(f"will be replaced: {what}")
        made: list[Callable[[], None]] = []
        try:
            if plan.nvram is not None and nvram is not None:
                _write_file(plan.nvram, reader.read_file(nvram), made)
            if plan.tpm is not None and tpm is not None:
                made.append(unpack_state(plan.tpm.written, reader.read_file(tpm)))
            written = _write_disks(reader, manifest.disks, plan, made, tell)
            warnings = libvirt_restore.complete(hypervisor, plan)
        except BaseException:
            _abort(made)
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


def _write_disks(
    reader: Reader, entries: Sequence[DiskEntry], plan: RestorePlan, made: list[Callable[[], None]], tell: Progress
) -> int:
    """Write all disks of the plan; what was made is added to `made`. Return the bytes of data."""
    planned = {disk.target: disk for disk in plan.disks}
    images = [_Image.plan(reader, entry, planned[entry.name].format) for entry in entries]
    _check_space([(planned[image.entry.name].file.written.parent, image.needed) for image in images])
    tell.start(sum(entry.size for entry in entries), f"restoring {plan.name}")
    for image in images:
        file = planned[image.entry.name].file
        target = image.target(file.written, file.owner, file.mode)
        made.append(target.abort)
        reader.restore_disk(image.entry, target, advance=tell.advance)
        target.finish()
    if plan.current is not None:
        tell.start(sum(image.needed for image in images), "checking the restored disks")
        for image in images:
            _check(reader, image, planned[image.entry.name].file.written, tell)
    return sum(image.needed for image in images)


def _check_space(needs: Sequence[tuple[Path, int]]) -> None:
    """Raise TargetFullError where the disks together do not fit, although each alone may. `needs` are folders and bytes."""
    devices: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        device = folder.stat().st_dev
        devices[device] = (folder, devices.get(device, (folder, 0))[1] + needed)
    for folder, needed in devices.values():
        check_space(folder, needed)


def _check(reader: Reader, image: _Image, path: Path, tell: Progress) -> None:
    def pieces() -> Iterator[Piece]:
        for piece in reader.read_disk(image.entry):
            yield piece
            tell.advance(len(piece.data))

    check_image(path, pieces(), image.layout)


def _write_file(file: PlannedFile, data: bytes, made: list[Callable[[], None]]) -> None:
    new = NewFile(
        file.written, needed=len(data), owner=None if file.owner is None else Owner(*file.owner), mode=file.mode
    )
    made.append(new.discard)
    new.write(0, data)
    new.publish()


def _abort(made: Sequence[Callable[[], None]]) -> None:
    """Remove what was made; the error that led here is the one that counts."""
    for remove in reversed(made):
        with suppress(LabBackupError):
            remove()


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
        if to.is_block_device():
            raise TargetExistsError(f"{to} is a device; it was left as it was", hint="say --in-place to overwrite it")
        image = _Image.plan(reader, entry, form)
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
        _abort([target.abort])
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
