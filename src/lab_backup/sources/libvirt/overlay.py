"""Temporary overlays above the disks of a VM, and merging them back into the disks.

While an overlay takes the guest's writes, the image below it does not change and can be read. Whoever finds an overlay
of a dead backup, the guard or the next run, can merge it back: everything needed is in libvirt and in the overlay.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCommit
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.sources.libvirt import image
from lab_backup.sources.libvirt.domain import Domain, inactive_xml
from lab_backup.sources.libvirt.errors import HypervisorError, translated

MERGE_STALL = 600.0
"""Seconds without any progress after which merging back counts as failed."""

_NAME = re.compile(r"lab-backup-[0-9a-f]{32}-[0-9a-f]+-[\w-]+\.overlay")


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay of ours above the disk `target`."""

    target: str
    path: Path


def overlay_name(uuid: str, token: str, target: str) -> str:
    """Return the file name of an overlay of the backup with `token`."""
    return f"lab-backup-{uuid.replace('-', '')}-{token}-{target.lower()}.overlay"


def snapshot_xml(overlays: Mapping[str, Path], others: list[str]) -> str:
    """Return the XML of an external snapshot of some disks; `others` take no part."""
    root = Element("domainsnapshot")
    disks = SubElement(root, "disks")
    for target, path in overlays.items():
        disk = SubElement(disks, "disk", name=target, snapshot="external", type="file")
        SubElement(disk, "driver", type="qcow2")
        SubElement(disk, "source", file=str(path))
    for target in others:
        SubElement(disks, "disk", name=target, snapshot="no")
    return tostring(root, encoding="unicode")


def find(domain: Any) -> list[Overlay]:
    """Return the overlays of ours that a virDomain, running or not, writes to."""
    return [
        Overlay(disk.target, Path(disk.path))
        for disk in Domain.read(domain).disks
        if disk.path is not None and _NAME.fullmatch(Path(disk.path).name)
    ]


def merge_back(domain: Any) -> None:
    """Merge all overlays of ours back into the disks below them, and remove them.

    Raises HypervisorError where that does not work; calling again goes on where it stopped.
    """
    for overlay in find(domain):
        with translated(f"merge the changes to disk {overlay.target} back"):
            if domain.isActive():
                _merge_running(domain, overlay.target)
            else:
                _merge_stopped(domain, overlay)
        overlay.path.unlink(missing_ok=True)


def _merge_running(domain: Any, target: str) -> None:
    if not domain.blockJobInfo(target, 0):
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        domain.blockCommit(target, None, None, 0, flags)
    seen, since = -1, time.monotonic()
    while True:
        state = domain.blockJobInfo(target, 0)
        if not state:
            raise HypervisorError(f"merging the changes to disk {target} back has failed", hint="see QEMU's log")
        if state["cur"] == state["end"] and state["end"] > 0 and _is_ready(domain, target):
            domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            return
        if state["cur"] != seen:
            seen, since = state["cur"], time.monotonic()
        elif time.monotonic() - since > MERGE_STALL:
            raise HypervisorError(f"merging the changes to disk {target} back makes no progress")
        time.sleep(0.1)


def _is_ready(domain: Any, target: str) -> bool:
    """Tell whether QEMU has said that it can switch over; the counters alone may be equal before it has begun."""
    root = fromstring(domain.XMLDesc(0))
    for disk in root.iterfind("devices/disk"):
        name = disk.find("target")
        mirror = disk.find("mirror")
        if name is not None and name.get("dev") == target:
            return mirror is not None and mirror.get("ready") == "yes"
    return False


def _merge_stopped(domain: Any, overlay: Overlay) -> None:
    """Merge back with the VM off, and let its definition name the disk below again."""
    below, image_format = image.backing(overlay.path)
    image.commit(overlay.path)
    root = fromstring(inactive_xml(domain))
    for disk in root.iterfind("devices/disk"):
        name, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
        if name is None or source is None or name.get("dev") != overlay.target:
            continue
        source.attrib.pop("dev", None)
        is_device = below.is_block_device()
        disk.set("type", "block" if is_device else "file")
        source.attrib.pop("file", None)
        source.set("dev" if is_device else "file", str(below))
        if driver is not None:
            driver.set("type", image_format)
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
    domain.connect().defineXML(tostring(root, encoding="unicode"))
