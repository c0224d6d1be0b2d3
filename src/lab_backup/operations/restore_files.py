"""Writing the files of a restore: into this host's folders, many threads at once, or through libvirt to another host."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab_backup.blocks import BlockWriter, Buffer
from lab_backup.errors import LabBackupError
from lab_backup.extent import total
from lab_backup.operations.progress import Progress
from lab_backup.operations.qcow2_stream import qcow2_layout, qcow2_stream
from lab_backup.qcow2.layout import Layout
from lab_backup.repository.manifest import DiskEntry, Manifest
from lab_backup.repository.reader import Piece, Reader
from lab_backup.sources.libvirt import remote_restore
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.restore_plan import PlannedFile, RestorePlan
from lab_backup.sources.libvirt.tpm_state import unpack_state
from lab_backup.targets.new_file import NewFile, Owner, check_space
from lab_backup.targets.qcow2_file import Qcow2Target
from lab_backup.targets.raw_file import RawFileTarget
from lab_backup.targets.read_back import check_image

NVRAM = "nvram"
TPM = "tpm.tar"

Removals = list[Callable[[], None]]
"""What removes again the things that were made so far, oldest first."""


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk of the backup, and the image file to make of it. `layout` is None for raw; `needed` is the file's bytes with data."""

    entry: DiskEntry
    format: str
    layout: Layout | None
    needed: int

    @classmethod
    def plan(cls, reader: Reader, entry: DiskEntry, form: str) -> "DiskImage":
        """Look at the disk's map. Raises DamagedError, LayoutError."""
        if form == "qcow2":
            layout = qcow2_layout(reader, entry)
            return cls(entry, form, layout, layout.file_size)
        return cls(entry, form, None, total(reader.allocated(entry), zero=False))

    @property
    def file_size(self) -> int:
        """Length of the image file in bytes, holes included."""
        return self.entry.size if self.layout is None else self.layout.file_size

    def parts(self, reader: Reader) -> Iterator[tuple[int, Buffer]]:
        """Yield the file's content front to back, as places and bytes; what lies between is zero."""
        if self.layout is None:
            yield from reader.read_disk(self.entry)
            return
        at = 0
        for data in qcow2_stream(reader, self.entry, self.layout):
            yield at, data
            at += len(data)

    def target(self, path: Path, owner: tuple[int, int] | None = None, mode: int = 0o600) -> BlockWriter:
        """Begin the file on this host."""
        who = None if owner is None else Owner(*owner)
        if self.layout is not None:
            return Qcow2Target(path, self.layout, owner=who, mode=mode)
        return RawFileTarget(path, self.entry.size, needed=self.needed, owner=who, mode=mode)


def write_files(reader: Reader, manifest: Manifest, plan: RestorePlan, made: Removals, tell: Progress) -> int:
    """Write all that the plan asks for into this host's folders, and read back what is going to replace something.

    Each thing that was made is added to `made`. Returns the bytes of the image files that hold data.
    """
    nvram, tpm = manifest.file(NVRAM), manifest.file(TPM)
    if plan.nvram is not None and nvram is not None:
        _write_file(plan.nvram, reader.read_file(nvram), made)
    if plan.tpm is not None and tpm is not None:
        made.append(unpack_state(plan.tpm.written, reader.read_file(tpm)))
    return _write_disks(reader, manifest.disks, plan, made, tell)


def _write_disks(
    reader: Reader, entries: Sequence[DiskEntry], plan: RestorePlan, made: Removals, tell: Progress
) -> int:
    """Write all disks of the plan; what was made is added to `made`. Return the bytes of data."""
    planned = {disk.target: disk for disk in plan.disks}
    images = [DiskImage.plan(reader, entry, planned[entry.name].format) for entry in entries]
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


def _check(reader: Reader, image: DiskImage, path: Path, tell: Progress) -> None:
    def pieces() -> Iterator[Piece]:
        for piece in reader.read_disk(image.entry):
            yield piece
            tell.advance(len(piece.data))

    check_image(path, pieces(), image.layout)


def _write_file(file: PlannedFile, data: bytes, made: Removals) -> None:
    new = NewFile(
        file.written, needed=len(data), owner=None if file.owner is None else Owner(*file.owner), mode=file.mode
    )
    made.append(new.discard)
    new.write(0, data)
    new.publish()


def abort(made: Removals) -> None:
    """Remove what was made; the error that led here is the one that counts."""
    for remove in reversed(made):
        with suppress(LabBackupError):
            remove()


def upload_files(
    hypervisor: Hypervisor, reader: Reader, manifest: Manifest, plan: RestorePlan, made: Removals, tell: Progress
) -> int:
    """Make the plan's files as volumes of its pool on the hypervisor's host. Returns the bytes sent for disks."""
    planned = {disk.target: disk for disk in plan.disks}
    images = [DiskImage.plan(reader, entry, planned[entry.name].format) for entry in manifest.disks]
    needed = sum(image.needed for image in images)
    remote_restore.check_room(hypervisor, plan.pool or "", needed)
    nvram = manifest.file(NVRAM)
    if plan.nvram is not None and nvram is not None:
        data = reader.read_file(nvram)
        _upload(hypervisor, plan, plan.nvram.path.name, len(data), iter([(0, data)]), made, lambda _: None)
    tell.start(needed, f"restoring {plan.name}")
    for image in images:
        name = planned[image.entry.name].file.path.name
        _upload(hypervisor, plan, name, image.file_size, image.parts(reader), made, tell.advance)
    return needed


def _upload(
    hypervisor: Hypervisor,
    plan: RestorePlan,
    name: str,
    size: int,
    parts: Iterator[tuple[int, Buffer]],
    made: Removals,
    advance: Callable[[int], None],
) -> None:
    volume = remote_restore.make_volume(hypervisor, plan.pool or "", name, size)
    made.append(lambda: remote_restore.remove_volume(volume))
    remote_restore.upload(hypervisor, volume, size, parts, advance)
