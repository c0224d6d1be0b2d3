"""An image as a source of the backup operation: a raw file, a qcow2 file or a block device."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab_backup.blocks import BlockReader
from lab_backup.errors import BusyError, UsageError
from lab_backup.extent import Extent
from lab_backup.nbd.blocks import NbdBlockReader
from lab_backup.nbd.protocol import ALLOCATION
from lab_backup.nbd.server import QemuNbd
from lab_backup.sources.image import qcow2, usage
from lab_backup.sources.image.errors import ImageReadError
from lab_backup.sources.image.file import ImageFile
from lab_backup.sources.image.locks import Locked, lock_for_reading
from lab_backup.sources.image.raw import RawReader
from lab_backup.sources.source import ConfigurationFile, Consistency, DiskExport, Previous

FORMATS = ("raw", "qcow2")

DISK_NAME = "disk"
"""The name of an image's only disk."""


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """The only disk of an image; always read whole, since images keep no track of changes that we could trust."""

    identity: str
    format: str
    reader: BlockReader
    name: str = DISK_NAME
    checkpoint: str | None = None
    incremental: bool = False
    full_reason: str | None = None

    def changed(self) -> Iterator[Extent]:
        """Return the whole disk."""
        return self.reader.extents()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What reading an image takes."""

    reader: BlockReader
    files: list[ImageFile]
    server: QemuNbd | None = None


class ImageSource:
    """An open image; see `OpenSource`. Closes everything when the context ends."""

    kind = "image"

    def __init__(
        self,
        name: str,
        opened: _Opened,
        disk: ImageDisk,
        *,
        warnings: list[str],
        notes: list[str],
        resources: ExitStack,
    ) -> None:
        """Present `disk`; `open_image` is the way to get there. `resources` closes what was opened for it."""
        self.name = name
        self.source_id = f"image:{name}"
        self.host = socket.gethostname()
        self.consistency = Consistency.CRASH if warnings else Consistency.OFFLINE
        self.disks: list[DiskExport] = [disk]
        self.configuration: list[ConfigurationFile] = []
        self.warnings = warnings
        self.notes = notes
        self._opened = opened
        self._resources = resources

    def check(self) -> None:
        """Raise if a file of the image was written to, or if the server that reads it is gone."""
        opened = self._opened
        if opened.server is not None and not opened.server.alive:
            raise ImageReadError(f"qemu-nbd, which reads image {opened.files[0].path}, has ended", hint="try again")
        for file in opened.files:
            file.check()

    def commit(self) -> None:
        """Nothing to keep: an image has no checkpoints."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._resources.close()


def open_image(
    path: Path,
    *,
    name: str | None = None,
    format: str | None = None,  # noqa: A002 - the word of the command line and of everybody who uses images
    previous: Previous | None = None,
) -> ImageSource:
    """Open the image at `path` for a backup under `name` (by default its path, resolved).

    Without `format`, a file named `.qcow2` or `.qcow` that begins like one is qcow2, and everything else is raw: what
    a guest wrote is never taken for a description of itself. `previous` changes nothing: every image is read whole.

    Raises NotFoundError, AccessDeniedError, UsageError, BusyError where a VM writes the image, UnsafeImageError.
    """
    del previous
    if format is not None and format not in FORMATS:
        raise UsageError(f"{format!r} is not an image format that can be read", hint=f"use {' or '.join(FORMATS)}")
    path = path.absolute()
    title = _text(path.resolve()) if name is None else name
    if not title or not title.isprintable():
        raise UsageError(f"{title!r} is not a name for an image", hint="use printable characters")
    notes: list[str] = []
    with ExitStack() as stack:
        image = ImageFile(path)
        stack.callback(image.close)
        chosen = format or _recognise(image, notes)
        opened = _open_raw(image, notes) if chosen == "raw" else _open_qcow2(image, notes, stack)
        stack.callback(opened.reader.close)
        warnings = [warning for file in opened.files for warning in _uses(file)]
        disk = ImageDisk(image.identity, chosen, opened.reader)
        resources = stack.pop_all()
    return ImageSource(title, opened, disk, warnings=warnings, notes=notes, resources=resources)


def _recognise(image: ImageFile, notes: list[str]) -> str:
    """Return the format to read `image` in when nobody said one."""
    begins = image.read_start(len(qcow2.MAGIC)) == qcow2.MAGIC
    named = image.path.suffix.lower() in (".qcow2", ".qcow")
    if begins and named and not image.is_device:
        return "qcow2"
    if begins:
        notes.append(f"{image.path} begins like a qcow2 image but is read as raw; if it is one, say --format qcow2")
    elif named:
        notes.append(f"{image.path} is named like a qcow2 image but does not begin like one, so it is read as raw")
    return "raw"


def _open_raw(image: ImageFile, notes: list[str]) -> _Opened:
    try:
        locked = lock_for_reading(image.fd)
    except Locked as error:
        raise BusyError(
            f"image {image.path} is in use by another process",
            hint="shut the VM down, or back it up while it runs: lab-backup backup vm NAME",
        ) from error
    if not locked:
        notes.append(f"the file system of {image.path} knows no locks, so nothing keeps a VM from starting on it")
    return _Opened(RawReader(image), [image])


def _open_qcow2(image: ImageFile, notes: list[str], stack: ExitStack) -> _Opened:
    chain = qcow2.open_chain(image, stack)
    notes += [f"{image.path} builds on {file.path} ({kind}), which is part of the backup" for file, kind in chain]
    if snapshots := qcow2.header_of(image).snapshots:
        notes.append(f"{image.path} holds {snapshots} internal snapshots, which are not part of the backup")
    server = stack.enter_context(QemuNbd(image.path, "qcow2"))
    reader = NbdBlockReader(server.connect([ALLOCATION]))
    return _Opened(reader, [image, *(file for file, _ in chain)], server)


def _uses(image: ImageFile) -> Iterator[str]:
    """Yield what else on this host may write to `image` while it is read."""
    if not image.is_device:
        for loop in usage.loop_devices_for_writing(image.path):
            yield f"image {image.path} can be written through {loop} while it is backed up"
        return
    places = usage.mounts_for_writing(image.device)
    if places:
        yield f"{image.path} is mounted for writing at {', '.join(places)}: the backup is no point in time"
    elif usage.is_claimed(image.path):
        yield f"{image.path} is in use by the kernel (LVM, RAID, swap or a mount), which may write to it"


def _text(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
