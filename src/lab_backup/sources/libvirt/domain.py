"""What a libvirt domain is made of, read from its XML (https://libvirt.org/formatdomain.html)."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element, tostring

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.sources.libvirt.errors import translated
from lab_backup.sources.libvirt.ownership import NAMESPACE

AGENT_CHANNEL = "org.qemu.guest_agent.0"

_SOURCE_ATTRIBUTES = {
    "file": ("file",),
    "block": ("dev",),
    "network": ("protocol", "name"),
    "volume": ("pool", "volume"),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a domain. `source` says where its data lies, in words that are equal for the same place."""

    target: str
    device: str
    type: str
    format: str
    source: str
    path: str | None
    serial: str
    alias: str
    read_only: bool
    shareable: bool
    transient: bool
    chain: tuple[str, ...]
    encrypted: bool = False

    @property
    def identity(self) -> str:
        """What tells this disk from another one under the same target name."""
        return f"{self.target}|{self.source}|{self.serial}"

    @property
    def has_bitmaps(self) -> bool:
        """Whether its format can keep a dirty bitmap over a restart; only qcow2 can."""
        return self.format == "qcow2"

    @property
    def excluded(self) -> str | None:
        """Why it is not part of a backup, or None where it is."""
        if self.device != "disk":
            return f"it is a {self.device}"
        if self.read_only:
            return "it is read-only"
        if self.shareable:
            return "it is shared with other VMs"
        if self.transient:
            return "it is transient: its changes are thrown away when the VM stops"
        if not self.source:
            return "it has no medium"
        return None

    def was(self, identity: str) -> bool:
        """Tell whether this is the disk that had `identity`: the same, or one that now lies in overlays over it."""
        target, _, rest = identity.partition("|")
        source, _, serial = rest.rpartition("|")
        return (target, serial) == (self.target, self.serial) and source in (self.source, *self.chain)


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain at one moment. `disks` are those of the running VM, or of the definition where it is off."""

    uuid: str
    name: str
    running: bool
    paused: bool
    persistent: bool
    disks: tuple[Disk, ...]
    agent: str | None
    nvram: str | None
    nvram_format: str
    tpm: bool
    xml: str

    @classmethod
    def read(cls, domain: Any) -> "Domain":
        """Ask libvirt about `domain`, a virDomain."""
        with translated("read the definition of the VM"):
            running = bool(domain.isActive())
            persistent = bool(domain.isPersistent())
            state = domain.state()[0]
            live = domain.XMLDesc(0)
            inactive = inactive_xml(domain) if persistent else live
        facts = cls.parse(
            live, inactive, running=running, persistent=persistent, paused=state == libvirt.VIR_DOMAIN_PAUSED
        )
        return replace(facts, disks=tuple(_with_volume_path(domain, disk) for disk in facts.disks))

    @classmethod
    def parse(cls, live: str, inactive: str, *, running: bool, persistent: bool, paused: bool = False) -> "Domain":
        """Read a domain from its `live` XML, and keep the `inactive` one for the restore."""
        root = fromstring(live)
        nvram = root.find("os/nvram")
        channel = root.find(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
        return cls(
            uuid=root.findtext("uuid") or "",
            name=root.findtext("name") or "",
            running=running,
            paused=paused,
            persistent=persistent,
            disks=tuple(_disks(root)),
            agent=None if channel is None else channel.get("state", "disconnected"),
            nvram=None if nvram is None else _nvram_path(nvram),
            nvram_format="raw" if nvram is None else nvram.get("format", "raw"),
            tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
            xml=without_ownership(inactive),
        )

    def select(self, wanted: Sequence[str] = ()) -> list[Disk]:
        """Return the disks to back up: all that can be, or those named in `wanted`.

        Raises NotFoundError for a name that no disk has, UsageError for a disk that cannot be backed up and for a VM
        that has no disk to back up at all.
        """
        for name in wanted:
            disk = next((disk for disk in self.disks if disk.target == name), None)
            if disk is None:
                raise NotFoundError(
                    f"VM {self.name!r} has no disk {name!r}",
                    hint=f"its disks: {', '.join(disk.target for disk in self.disks) or 'none'}",
                )
            if disk.excluded:
                raise UsageError(f"disk {name!r} of VM {self.name!r} cannot be backed up: {disk.excluded}")
        chosen = [disk for disk in self.disks if not disk.excluded and (not wanted or disk.target in wanted)]
        if not chosen:
            raise UsageError(f"VM {self.name!r} has no disk that could be backed up")
        return chosen


def left_out(facts: Domain) -> list[str]:
    """Return, in words, which hard disks of the VM no backup of it holds, and why."""
    return [
        f"disk {disk.target} is not in the backup: {disk.excluded}"
        for disk in facts.disks
        if disk.device == "disk" and disk.excluded and disk.source
    ]


def _with_volume_path(domain: Any, disk: Disk) -> Disk:
    """Return `disk` with the path of the volume that it is, where libvirt knows one."""
    if disk.type != "volume" or not disk.source:
        return disk
    pool, _, name = disk.source.removeprefix("volume:").partition("/")
    with suppress(libvirt.libvirtError):
        volume = domain.connect().storagePoolLookupByName(pool).storageVolLookupByName(name)
        if volume.info()[0] in {libvirt.VIR_STORAGE_VOL_FILE, libvirt.VIR_STORAGE_VOL_BLOCK}:
            return replace(disk, path=str(volume.path()))
    return disk


def inactive_xml(domain: Any) -> str:
    """Return the persistent definition, with its secrets where we may see them."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE
    try:
        return str(domain.XMLDesc(flags | libvirt.VIR_DOMAIN_XML_SECURE))
    except libvirt.libvirtError:
        return str(domain.XMLDesc(flags))


def without_ownership(xml: str) -> str:
    """Return the domain's `xml` without the element by which a backup marks a VM as taken."""
    if NAMESPACE not in xml:
        return xml
    root = fromstring(xml)
    metadata = root.find("metadata")
    if metadata is not None:
        for element in metadata.findall(f"{{{NAMESPACE}}}owner"):
            metadata.remove(element)
    return tostring(root, encoding="unicode")


def _disks(root: Element) -> Iterator[Disk]:
    for element in root.iterfind("devices/disk"):
        target = element.find("target")
        if target is None:
            continue
        kind = element.get("type", "file")
        driver, alias, source = element.find("driver"), element.find("alias"), element.find("source")
        yield Disk(
            target=target.get("dev", ""),
            device=element.get("device", "disk"),
            type=kind,
            format="raw" if driver is None else driver.get("type", "raw"),
            source=_place(kind, source),
            path=_path(kind, source),
            serial=element.findtext("serial") or "",
            alias="" if alias is None else alias.get("name", ""),
            read_only=element.find("readonly") is not None,
            shareable=element.find("shareable") is not None,
            transient=element.find("transient") is not None,
            chain=tuple(_chain(element)),
            encrypted=element.find("encryption") is not None or element.find("source/encryption") is not None,
        )


def _chain(disk: Element) -> Iterator[str]:
    below = disk.find("backingStore")
    while below is not None and below.get("type") is not None:
        yield _place(below.get("type", "file"), below.find("source"))
        below = below.find("backingStore")


def _place(kind: str, source: Element | None) -> str:
    if source is None:
        return ""
    values = [source.get(name, "") for name in _SOURCE_ATTRIBUTES.get(kind, ("file", "dev", "name", "path"))]
    return f"{kind}:{'/'.join(values)}" if any(values) else ""


def _path(kind: str, source: Element | None) -> str | None:
    if source is None or kind not in {"file", "block"}:
        return None
    return source.get("file") or source.get("dev")


def _nvram_path(nvram: Element) -> str | None:
    source = nvram.find("source")
    return source.get("file") if source is not None else (nvram.text or "").strip() or None
