"""Turning the domain XML of a backup into that of a restored VM (https://libvirt.org/formatdomain.html).

The XML in a backup is input like any other: whoever could write it may have been another host's administrator, or an attacker. So a
restore never lets it reach for more of this host than its own disks (see `confinement`). What a VM needs and does no harm by itself is
kept, with a note where this host may lack it.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID, uuid4
from xml.etree.ElementTree import Element, SubElement, register_namespace, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.sources.libvirt.confinement import RANDOM_DEVICES, Gate, paths, short
from lab_backup.sources.libvirt.ownership import NAMESPACE
from lab_backup.units import MiB

MAX_XML = 4 * MiB  # libvirt's own limit for a definition sent to it
MAX_DEPTH = 32  # elements; libvirt's schema nests 10 deep, apart from backing chains, which are not kept

_NAME = re.compile(r"[^/\n\x00]{1,200}")
# Folders that libvirt fills with sockets and files of its own, one for each domain.
_PACKAGED = re.compile(r"/usr/share/(OVMF|AAVMF|edk2|qemu|ovmf)/")  # firmware, which comes with QEMU
_LIBVIRT_FOLDERS = re.compile(r"/(var/lib|run|var/run)/libvirt/|/libvirt/qemu/")

register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
register_namespace("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0")


class DefinitionError(LabBackupError):
    """The definition in the backup is none of a domain. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A restored disk: an image file with its absolute `path` and its `format` (`raw` or `qcow2`)."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A definition for libvirt, and what the user should (`warnings`) or may (`notes`) know about it."""

    xml: str
    uuid: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """What a restore must know of a definition before it rewrites it. `disks` are the paths by target, None where it is not a local file.

    `devices` says in words what the disks are that are no files, by target.
    """

    name: str
    uuid: str
    nvram: str | None
    has_nvram: bool
    tpm: str | None
    disks: Mapping[str, str | None] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()


def read_definition(xml: str) -> Definition:
    """Return what matters in `xml`. Raises DefinitionError."""
    root = _parse(xml)
    name, uuid = root.findtext("name") or "", root.findtext("uuid") or ""
    if not _NAME.fullmatch(name):
        raise DefinitionError(
            "the definition in the backup has no usable name", hint="restore the disks: lab-backup restore image"
        )
    try:
        UUID(uuid)
    except ValueError as error:
        raise DefinitionError(
            f"the definition of {name!r} has no UUID", hint="restore the disks: lab-backup restore image"
        ) from error
    nvram = root.find("os/nvram")
    tpm = root.find("devices/tpm/backend[@type='emulator']")
    return Definition(
        name=name,
        uuid=str(UUID(uuid)),
        nvram=None if nvram is None else _nvram_path(nvram),
        has_nvram=nvram is not None,
        tpm=None if tpm is None else tpm.get("version", "2.0"),
        disks={target: _file(disk) for target, disk in _disks(root)},
        devices={
            target: short(" ".join(value for source in disk.findall("source") for value in source.attrib.values()))
            for target, disk in _disks(root)
            if disk.get("type", "file") != "file"
        },
        networks=tuple(
            source.get("network", "") for source in root.iterfind("devices/interface[@type='network']/source")
        ),
    )


def check_name(name: str) -> str:
    """Return `name` if a VM may have it. Raises UsageError."""
    if not _NAME.fullmatch(name) or name != name.strip() or name.startswith("-"):
        raise UsageError(
            f"{name!r} cannot be the name of a VM", hint="use letters, digits, dots, dashes and underscores"
        )
    return name


def rewrite_for_restore(
    xml: str,
    *,
    name: str,
    new_identity: bool,
    disks: Mapping[str, NewDisk],
    nvram_path: str | None = None,
    current: str | None = None,
    trusted: bool = False,
    terminals: str | None = None,
    exists: Callable[[str], bool] = lambda _path: True,
) -> Rewritten:
    """Return the definition of the VM `name` with the restored `disks`, by target.

    With `new_identity` it gets a new UUID (in its SMBIOS data too) and new MAC addresses, and whatever two running VMs cannot share is
    left for libvirt to choose; all else stays. The generation id is new in any case: the guest must notice that it went back in time.
    `nvram_path` is where its variables were put; None makes libvirt take an empty template. `current` is the definition of the VM that is
    overwritten: access to the host that it has already is kept, and so is everything if the definition is `trusted`. `terminals` is
    how the paths of serial ports begin (`/folder/name`), `exists` tells whether the host has a file. Raises DefinitionError.
    """
    definition = read_definition(xml)
    gate = Gate(None if current is None else _parse(current), trusted=trusted, terminals=terminals, exists=exists)
    rewriter = _Rewriter(_parse(xml), definition, name, gate, exists)
    return rewriter.rewrite(disks, nvram_path, new_identity=new_identity)


class _Rewriter:
    """Holds one definition while it is rewritten."""

    def __init__(
        self,
        root: Element,
        old: Definition,
        name: str,
        gate: Gate,
        exists: Callable[[str], bool],
    ) -> None:
        self._root = root
        self._old = old
        self._name = name
        self._gate = gate
        self._exists = exists
        self._warnings = gate.warnings
        self._notes = gate.notes

    def rewrite(self, disks: Mapping[str, NewDisk], nvram_path: str | None, *, new_identity: bool) -> Rewritten:
        uuid = str(uuid4()) if new_identity else self._old.uuid
        self._drop_runtime()
        self._identify(uuid)
        self._gate.confine(self._root)
        self._place_disks(disks)
        self._place_firmware(nvram_path)
        if new_identity:
            self._new_addresses()
        self._place_sockets()
        self._check_host({disk.path for disk in disks.values()} | {nvram_path or ""} | self._gate.moved)
        text = tostring(self._root, encoding="unicode")
        return Rewritten(text, uuid, tuple(dict.fromkeys(self._warnings)), tuple(dict.fromkeys(self._notes)))

    # --- what belongs to a running VM, or to us ---

    def _drop_runtime(self) -> None:
        self._root.attrib.pop("id", None)
        for element in self._root.iter():
            _remove(element, [child for child in element if _is_runtime(child)])
            if element.tag == "source":
                element.attrib.pop("index", None)
                element.attrib.pop("portid", None)
        for metadata in self._root.findall("metadata"):
            _remove(metadata, [child for child in metadata if child.tag.startswith(f"{{{NAMESPACE}}}")])
            if len(metadata) == 0:
                self._root.remove(metadata)
        for label in self._root.findall("seclabel"):
            if label.get("type") == "dynamic":
                _remove(label, label.findall("label") + label.findall("imagelabel"))

    def _identify(self, uuid: str) -> None:
        _text(self._root, "name", self._name)
        _text(self._root, "uuid", uuid)
        for entry in self._root.iterfind("sysinfo/system/entry"):
            if entry.get("name") == "uuid" or (entry.text or "").strip().lower() == self._old.uuid:
                entry.text = uuid
        genid = self._root.find("genid")
        if genid is not None and genid.text:
            genid.text = str(uuid4())

    # --- what it needs of the host ---

    def _check_host(self, own: Collection[str]) -> None:
        """Note what the VM needs of this host."""
        for device in self._root.iterfind("devices/hostdev"):
            kind = short(device.get("type", ""))
            self._notes.append(
                f"a {kind} device of the host is passed through: see that this host has it, and that it is free"
            )
        for secret in self._root.iterfind("devices/tpm/backend/encryption"):
            name = short(secret.get("secret", ""))
            self._notes.append(f"the TPM's state is encrypted by the libvirt secret {name}, which is not in the backup")
        for tag in ("kernel", "initrd", "dtb", "loader"):
            path = (self._root.findtext(f"os/{tag}") or "").strip()
            if path and not self._exists(path):
                self._warnings.append(
                    f"{short(path)}, the VM's {tag}, is not on this host: it will not start without it"
                )
        usual = {*own, *RANDOM_DEVICES, self._root.findtext("devices/emulator")}
        files = dict.fromkeys(path for path in paths(self._root) if path not in usual and not _PACKAGED.match(path))
        if files:
            listed = ", ".join(short(path) for path in list(files)[:10])
            self._notes.append(f"it uses files of this host, which are not in the backup: {listed}")

    # --- disks ---

    def _place_disks(self, disks: Mapping[str, NewDisk]) -> None:
        missing = dict(disks)
        for target, disk in list(_disks(self._root)):
            new = missing.pop(target, None)
            if new is not None:
                self._place_disk(disk, target, new)
            elif disk.get("device") in {"cdrom", "floppy"}:
                self._check_medium(disk, target)
            else:
                devices = self._root.findall("devices")[0]
                self._gate.admit(devices, disk, f"disk {short(target)}, which is not in the backup,")
        if missing:
            raise DefinitionError(
                f"the backup holds disk {', '.join(sorted(missing))}, which its definition does not know",
                hint="the backup was forged or damaged; restore the disks: lab-backup restore image",
            )

    def _place_disk(self, disk: Element, target: str, new: NewDisk) -> None:
        if disk.find("encryption") is not None or disk.find("source/encryption") is not None:
            self._warnings.append(
                f"disk {target} was encrypted by QEMU; a backup holds what the guest sees, so the restored disk is not"
            )
        labels = [
            label for label in disk.findall("source/seclabel") if label.get("relabel") == "no" and len(label) == 0
        ]
        if disk.get("device") == "lun":
            disk.set("device", "disk")
            self._warnings.append(
                f"disk {target} was a SCSI device of the host; it is an image now, so SCSI commands no longer reach a device"
            )
        for attribute in ("rawio", "sgio"):
            disk.attrib.pop(attribute, None)
        _remove(disk, [child for child in disk if child.tag in {"source", "encryption", "auth"}])
        disk.set("type", "file")
        driver = disk.find("driver")
        if driver is None:
            driver = Element("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", new.format)
        source = Element("source", file=new.path)
        source.extend(labels)
        disk.insert(list(disk).index(driver) + 1, source)

    def _check_medium(self, disk: Element, target: str) -> None:
        source = disk.find("source")
        if source is None or not source.attrib:
            return
        path = _file(disk)
        if self._gate.knows(source) and (path is None or self._exists(path)):
            return
        _remove(disk, disk.findall("source"))
        if disk.get("type") not in {"file", "block"}:
            disk.set("type", "file")
        where = short(path or source.get("name") or source.get("volume") or "its medium")
        why = "is not in the backup" if path is None or self._exists(path) else "is gone"
        self._notes.append(f"drive {short(target)} is empty: {where} {why}")

    # --- firmware ---

    def _place_firmware(self, nvram_path: str | None) -> None:
        nvram = self._root.find("os/nvram")
        if nvram is None:
            return
        _remove(nvram, list(nvram))
        nvram.attrib.pop("type", None)
        nvram.text = nvram_path
        template = nvram.get("template")
        if template and not self._exists(template):
            del nvram.attrib["template"]
        if nvram_path is None:
            self._warnings.append(
                "the backup has no firmware variables (NVRAM): boot entries and Secure Boot keys start from the default"
            )
            self._root.findall("os")[0].remove(nvram)

    # --- what two VMs cannot share ---

    def _new_addresses(self) -> None:
        used: set[str] = set()
        for interface in self._root.iterfind("devices/interface"):
            mac = interface.find("mac")
            if mac is not None:
                mac.set("address", _new_mac(used))
                mac.attrib.pop("check", None)
            for target in interface.findall("target"):
                if target.attrib.pop("dev", None) and not target.attrib:
                    interface.remove(target)
            for parameters in interface.iterfind("virtualport/parameters"):
                parameters.attrib.pop("interfaceid", None)
        for cid in self._root.iterfind("devices/vsock/cid"):
            cid.set("auto", "yes")
            cid.attrib.pop("address", None)
        for graphics in self._root.iterfind("devices/graphics"):
            if graphics.get("autoport") == "no" and graphics.get("port", "-1") != "-1":
                self._notes.append(
                    f"its {short(graphics.get('type', ''))} display keeps port {short(graphics.get('port', ''))}: it and the original cannot run at once"
                )

    def _place_sockets(self) -> None:
        """Leave the sockets that libvirt chooses to it; those of displays too, if they are not this VM's own already."""
        for channel in self._root.iterfind("devices/channel[@type='unix']"):
            _remove(
                channel,
                [source for source in channel.findall("source") if _LIBVIRT_FOLDERS.search(source.get("path", ""))],
            )
        for graphics in self._root.iterfind("devices/graphics"):
            known = self._gate.knows(graphics)
            for element in [graphics, *graphics.findall("listen")]:
                if not known or _LIBVIRT_FOLDERS.search(element.get("socket", "")):
                    element.attrib.pop("socket", None)


def _parse(xml: str) -> Element:
    if len(xml) > MAX_XML:
        raise DefinitionError(
            "the definition in the backup is too large to be one", hint="the backup was forged or damaged"
        )
    try:
        root: Element = fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise DefinitionError(
            f"the definition in the backup is not valid XML ({error})",
            hint="restore the disks: lab-backup restore image",
        ) from error
    if root.tag != "domain":
        raise DefinitionError(
            "the definition in the backup is none of a domain", hint="restore the disks: lab-backup restore image"
        )
    if any(len(root.findall(tag)) > 1 for tag in ("name", "uuid", "os", "devices", "metadata", "genid")):
        raise DefinitionError("the definition in the backup has parts twice", hint="the backup was forged or damaged")
    for _, disk in _disks(root):
        _remove(disk, disk.findall("backingStore"))
    level, depth = [root], 0
    while level:
        depth += 1
        level = [child for element in level for child in element]
        if depth > MAX_DEPTH:
            raise DefinitionError(
                "the definition in the backup is nested too deeply", hint="the backup was forged or damaged"
            )
    return root


def _disks(root: Element) -> Iterator[tuple[str, Element]]:
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        yield ("" if target is None else target.get("dev", "")), disk


def _file(disk: Element) -> str | None:
    source = disk.find("source")
    return None if source is None or disk.get("type", "file") != "file" else source.get("file")


def _nvram_path(nvram: Element) -> str | None:
    source = nvram.find("source")
    return source.get("file") if source is not None else (nvram.text or "").strip() or None


def _is_runtime(element: Element) -> bool:
    """Whether libvirt writes this into the definition of a running VM only."""
    if element.tag == "alias":
        return not element.get("name", "").startswith("ua-")
    if element.tag == "target":
        return bool(re.fullmatch(r"(vnet|macvtap)\d+", element.get("dev", ""))) and len(element.attrib) == 1
    return element.tag == "mirror"


def _remove(parent: Element, children: Collection[Element]) -> None:
    for child in children:
        parent.remove(child)


def _text(root: Element, tag: str, text: str) -> None:
    element = root.find(tag)
    (SubElement(root, tag) if element is None else element).text = text


def _new_mac(used: set[str]) -> str:
    """Return an unused address in the range that QEMU was given for its guests."""
    while True:
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        if mac not in used:
            used.add(mac)
            return mac
