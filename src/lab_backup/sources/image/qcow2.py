"""What a qcow2 image says about itself, and the chain of files that it builds on.

Read from the header alone (QEMU's docs/interop/qcow2.txt), so that it is known which files QEMU will open before QEMU
opens any. A header may come from anybody: one that names `/etc/shadow` as its backing file must not be followed
blindly, and a backing file whose format is not named would be probed by QEMU although a guest may have written it.
"""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lab_backup.errors import NotFoundError
from lab_backup.sources.image.errors import UnsafeImageError
from lab_backup.sources.image.file import ImageFile
from lab_backup.units import MiB

MAGIC = b"QFI\xfb"
MAX_CHAIN = 64
"""Images in a chain; more are a mistake."""

_HEADER = struct.Struct(">4sIQIIQI")  # magic, version, backing offset, backing length, cluster bits, size, encryption
_HEADER_LENGTH_2 = 72  # bytes of a header of version 2
_SNAPSHOTS = struct.Struct(">I")  # number of internal snapshots, at byte 60
_INCOMPATIBLE = struct.Struct(">Q")  # feature bits, at byte 72 of version 3
_LENGTH = struct.Struct(">I")  # of the header, at byte 100 of version 3
_EXTENSION = struct.Struct(">II")  # type, length
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441
_EXTERNAL_DATA = 1 << 2


@dataclass(frozen=True, slots=True)
class Header:
    """The names in a header, as the file spells them; None where it has none."""

    backing: str | None
    backing_format: str | None
    data_file: str | None
    encrypted: bool
    snapshots: int


@dataclass(frozen=True, slots=True)
class Link:
    """A file that an image needs besides itself."""

    path: Path
    format: str


def read_header(start: bytes, path: Path) -> Header:
    """Return what the first cluster, or the first 2 MiB, `start` of the image at `path` says.

    Raises UnsafeImageError where that is no qcow2 header of version 2 or 3.
    """
    if len(start) < _HEADER_LENGTH_2 or not start.startswith(MAGIC):
        raise UnsafeImageError(f"image {path} is not in qcow2 format", hint="name its format with --format")
    _, version, offset, length, cluster_bits, _, encryption = _HEADER.unpack_from(start)
    if version not in (2, 3):
        raise UnsafeImageError(
            f"image {path} has qcow version {version}", hint="convert it: qemu-img convert -O qcow2 OLD NEW"
        )
    if not 9 <= cluster_bits <= 21 or (version == 3 and len(start) < 104):
        raise _damaged(path)
    cluster = start[: 1 << cluster_bits]
    external = version == 3 and bool(_INCOMPATIBLE.unpack_from(cluster, 72)[0] & _EXTERNAL_DATA)
    extensions = dict(_extensions(cluster, _LENGTH.unpack_from(cluster, 100)[0] if version == 3 else 72, path))
    backing = cluster[offset : offset + length] if offset else b""
    if offset and (length > 1023 or len(backing) != length):
        raise _damaged(path)
    return Header(
        backing=_text(backing),
        backing_format=_text(extensions.get(_BACKING_FORMAT, b"")),
        data_file=_text(extensions.get(_DATA_FILE, b"")) if external else None,
        encrypted=encryption != 0,
        snapshots=_SNAPSHOTS.unpack_from(start, 60)[0],
    )


def _extensions(cluster: bytes, at: int, path: Path) -> Iterator[tuple[int, bytes]]:
    while at + _EXTENSION.size <= len(cluster):
        kind, length = _EXTENSION.unpack_from(cluster, at)
        if kind == 0:
            return
        data = cluster[at + _EXTENSION.size : at + _EXTENSION.size + length]
        if len(data) != length:
            raise _damaged(path)
        yield kind, data
        at += _EXTENSION.size + -(-length // 8) * 8


def open_chain(image: ImageFile, stack: ExitStack) -> list[tuple[ImageFile, str]]:
    """Open every file that the qcow2 `image` builds on; return them with their formats, nearest first.

    They close with `stack`. Raises UnsafeImageError where a file is remote, has no format, or is part of a circle;
    NotFoundError where one is missing.
    """
    seen = {image.identity}
    opened: list[tuple[ImageFile, str]] = []
    waiting = links(image)
    while waiting:
        link = waiting.pop(0)
        try:
            found = ImageFile(link.path)
        except NotFoundError as error:
            raise NotFoundError(
                f"image {image.path} needs {link.path}, which does not exist",
                hint="put it back, or correct its path by qemu-img rebase -u",
            ) from error
        stack.callback(found.close)
        if found.identity in seen or len(seen) >= MAX_CHAIN:
            raise UnsafeImageError(f"the backing files of image {image.path} go in a circle, or are too many")
        seen.add(found.identity)
        opened.append((found, link.format))
        if link.format == "qcow2":
            waiting += links(found)
    return opened


def header_of(image: ImageFile) -> Header:
    """Return what the header of `image` says."""
    return read_header(image.read_start(2 * MiB), image.path)


def links(image: ImageFile) -> list[Link]:
    """Return the files that the qcow2 `image` names itself."""
    header = header_of(image)
    if header.encrypted:
        raise UnsafeImageError(
            f"image {image.path} is encrypted", hint="back it up as it is, ciphertext and all: --format raw"
        )
    found = []
    if header.data_file is not None:
        found.append(Link(_local(header.data_file, image.path), "raw"))
    if header.backing is not None:
        if header.backing_format not in ("raw", "qcow2"):
            told = f"has the format {header.backing_format}" if header.backing_format else "has no named format"
            raise UnsafeImageError(
                f"the backing file {header.backing} of image {image.path} {told}",
                hint="name raw or qcow2, whichever it is: qemu-img rebase -u -F FORMAT -b BACKING IMAGE",
            )
        found.append(Link(_local(header.backing, image.path), header.backing_format))
    return found


def _local(name: str, image: Path) -> Path:
    """Return the file that QEMU finds for `name` in `image`."""
    if re.match(r"[^/]*:", name):  # QEMU: a colon before the first slash is a protocol
        raise UnsafeImageError(
            f"image {image} builds on {name.split(':', 1)[0]}:..., which is no file of this host",
            hint="flatten it first: qemu-img convert -O qcow2 OLD NEW",
        )
    return image.parent / name


def _text(raw: bytes) -> str | None:
    return os.fsdecode(raw.rstrip(b"\0")) or None


def _damaged(path: Path) -> UnsafeImageError:
    return UnsafeImageError(f"the qcow2 header of image {path} is damaged", hint="check it: qemu-img check IMAGE")
