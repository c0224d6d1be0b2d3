"""libvirt checkpoints: the dirty bitmaps by which the next backup knows what has changed.

Chains are independent per VM and repository: each repository's newest backup has a checkpoint of its own, whose bitmap
records every change since. Deleting any one of them leaves the others exact.

https://libvirt.org/formatcheckpoint.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.sources.libvirt.errors import translate, translated

PREFIX = "lab-backup-"
_NAME = re.compile(r"lab-backup-([^-]{1,8})-(.+)")
_BITMAP_GONE = re.compile(r"bitmap '.*' not found|missing or broken bitmap")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of ours. `disks` have a bitmap in it; with `sizes`, the bytes that changed since, per disk."""

    name: str
    repository: str
    backup: str
    created: datetime
    disks: tuple[str, ...]
    sizes: Mapping[str, int]


def checkpoint_name(repository_id: str, backup_id: str) -> str:
    """Return the name of the checkpoint that a backup leaves; also that of its bitmaps."""
    return f"{PREFIX}{_short(repository_id)}-{backup_id}"


def _short(repository_id: str) -> str:
    return repository_id.replace("-", "")[:8]


def belongs_to(name: str, repository_id: str) -> bool:
    """Tell whether `name` is that of a checkpoint or bitmap for a backup in this repository."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] == _short(repository_id)


def checkpoint_xml(name: str, description: str, disks: Mapping[str, bool], *, created: int | None = None) -> str:
    """Return the XML of a checkpoint; `disks` says of each target whether it gets a bitmap.

    `created` (seconds since 1970) is for one that is being defined again.
    """
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name
    SubElement(root, "description").text = description
    if created is not None:
        SubElement(root, "creationTime").text = str(created)
    listed = SubElement(root, "disks")
    for target, bitmap in disks.items():
        disk = SubElement(listed, "disk", name=target, checkpoint="bitmap" if bitmap else "no")
        if bitmap:
            disk.set("bitmap", name)
    return tostring(root, encoding="unicode")


def find(domain: Any, name: str) -> Any | None:
    """Return the virDomainCheckpoint called `name`, or None."""
    try:
        return domain.checkpointLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            return None
        raise translate(error, f"look up checkpoint {name}") from error


def describe(checkpoint: Any, *, sizes: bool = False) -> Checkpoint:
    """Read a virDomainCheckpoint; `sizes` need a running VM."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
    if sizes:
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE
    with translated("read a checkpoint"):
        root = fromstring(checkpoint.getXMLDesc(flags))
    name = root.findtext("name") or ""
    match = _NAME.fullmatch(name)
    disks = [disk for disk in root.iterfind("disks/disk") if disk.get("checkpoint") == "bitmap"]
    return Checkpoint(
        name=name,
        repository=match[1] if match else "",
        backup=match[2] if match else "",
        created=datetime.fromtimestamp(int(root.findtext("creationTime") or 0), UTC),
        disks=tuple(disk.get("name", "") for disk in disks),
        sizes={disk.get("name", ""): int(disk.get("size", 0)) for disk in disks} if sizes else {},
    )


def list_all(domain: Any) -> list[Checkpoint]:
    """Return our checkpoints of a virDomain, oldest first."""
    with translated("list the checkpoints of the VM"):
        found = [item for item in domain.listAllCheckpoints(0) if _NAME.fullmatch(item.getName())]
    return sorted((describe(item) for item in found), key=lambda item: (item.created, item.name))


def validate(domain: Any, name: str) -> str | None:
    """Return why libvirt cannot use the bitmaps of checkpoint `name` (of a running VM), or None where it can.

    Defining a checkpoint again with validation changes nothing but looks at every bitmap.
    """
    checkpoint = find(domain, name)
    if checkpoint is None:
        return f"checkpoint {name} is not known to libvirt"
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    try:
        domain.checkpointCreateXML(checkpoint.getXMLDesc(0), flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {
            libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT,
            libvirt.VIR_ERR_INVALID_DOMAIN_CHECKPOINT,
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_INVALID_ARG,
        }:
            return str(error.get_error_message())
        raise translate(error, f"check checkpoint {name}") from error
    return None


def redefine(domain: Any, xml: str, *, validate_bitmaps: bool) -> None:
    """Tell libvirt of a checkpoint whose bitmaps are in the disks already.

    Raises HypervisorError where they are not, or cannot be used; only a running VM's are looked at.
    """
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
    if validate_bitmaps:
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    with translated("define the checkpoint again"):
        domain.checkpointCreateXML(xml, flags)


def delete(domain: Any, name: str) -> None:
    """Remove a checkpoint of a running VM with its bitmaps; where one is gone, what libvirt remembers of the checkpoint.

    No error where there is none. Raises HypervisorError for anything else that stands in the way, such as a VM that is
    just stopping: its bitmaps would stay behind.
    """
    checkpoint = find(domain, name)
    if checkpoint is None:
        return
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if find(domain, name) is None:  # somebody else was faster
            return
        if not _BITMAP_GONE.search(error.get_error_message()):
            raise translate(error, f"delete checkpoint {name}") from error
        forget(domain, name)


def forget(domain: Any, name: str) -> None:
    """Make libvirt forget a checkpoint, and leave bitmaps alone; no error where there is none."""
    checkpoint = find(domain, name)
    if checkpoint is not None:
        with translated(f"delete checkpoint {name}"):
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
