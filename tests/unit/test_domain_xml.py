"""The definition of a restored VM: what changes, what stays, and what a hostile one does not get."""

from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from lab_backup.errors import UsageError
from lab_backup.sources.libvirt.domain_xml import (
    DefinitionError,
    NewDisk,
    Rewritten,
    check_name,
    read_definition,
    rewrite_for_restore,
)

UUID = "3b1e1a51-159d-4fe9-83b1-29b8a9748dfb"
DISKS = {"vda": NewDisk("/new/web-vda.qcow2", "qcow2")}

XML = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <genid>c0ffee00-159d-4fe9-83b1-29b8a9748dfb</genid>
  <title>The web server</title>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'><libosinfo:os id='debian'/></libosinfo:libosinfo>
    <owner xmlns='urn:lab-backup:owner:1' host='h' token='t'/>
  </metadata>
  <memory unit='MiB'>192</memory>
  <vcpu placement='static' cpuset='0-1'>2</vcpu>
  <sysinfo type='smbios'><system><entry name='manufacturer'>Us</entry><entry name='uuid'>{UUID}</entry><entry name='serial'>{UUID.upper()}</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' secure='no' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
    <boot dev='hd'/><smbios mode='sysinfo'/></os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <clock offset='utc'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
      <source dev='/dev/vg/web' index='3'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file' index='4'><format type='qcow2'/><source file='/base.qcow2'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/><serial>S-1</serial><boot order='1'/><alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/etc/shadow'/><target dev='vdb' bus='virtio'/></disk>
    <interface type='network'><mac address='52:54:00:11:22:33'/><source network='default' portid='x' bridge='virbr0'/><target dev='vnet0'/><model type='virtio'/></interface>
    <interface type='bridge'><mac address='52:54:00:11:22:34'/><source bridge='br0'/><virtualport type='openvswitch'><parameters interfaceid='{UUID}'/></virtualport><target dev='web0'/><model type='virtio'/></interface>
    <serial type='unix'><source mode='bind' path='/srv/web.console'/><target port='0'/></serial>
    <console type='unix'><source mode='bind' path='/srv/web.console'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <channel type='unix'><source mode='connect' path='/srv/monitor'/><target type='virtio' name='mine'/></channel>
    <graphics type='vnc' port='5901' autoport='no' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0' bus='0x1' slot='0x0' function='0x0'/></source></hostdev>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-{UUID}</label><imagelabel>libvirt-{UUID}</imagelabel></seclabel>
</domain>
"""


def no_logs(path: str) -> bool:
    """Say that the host has every file but those that a restore would make."""
    return not path.startswith("/new/")


def rewrite(
    xml: str = XML, *, name: str = "web", new_identity: bool = False, **options: object
) -> tuple[Element, Rewritten]:
    """Rewrite, and return the result parsed and as it is."""
    arguments: dict[str, object] = {
        "disks": DISKS,
        "nvram_path": "/new/web_VARS.fd",
        "terminals": "/new/vm",
        "exists": no_logs,
        **options,
    }
    result = rewrite_for_restore(xml, name=name, new_identity=new_identity, **arguments)  # type: ignore[arg-type]  # checked by the callee's tests
    root: Element = fromstring(result.xml)
    return root, result


def domain(devices: str = "", rest: str = "", os: str = "<os><type>hvm</type></os>") -> str:
    """Return a small definition with these parts."""
    disk = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/web.qcow2'/><target dev='vda' bus='virtio'/></disk>"
    return f"<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name><uuid>{UUID}</uuid>{os}<devices>{disk}{devices}</devices>{rest}</domain>"


def shape(element: Element) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """Return every element below with its text and attributes, in order."""
    return [(item.tag, (item.text or "").strip(), tuple(sorted(item.attrib.items()))) for item in element.iter()]


def test_the_restored_disk_replaces_the_source_and_nothing_else() -> None:
    """Type, format and place are those of the new file; bus, address, serial, boot order and driver options stay."""
    root, _ = rewrite()
    disk = root.findall("devices/disk")[0]
    assert disk.get("type") == "file"
    assert shape(disk)[1:] == [
        (
            "driver",
            "",
            (("cache", "none"), ("discard", "unmap"), ("io", "native"), ("name", "qemu"), ("type", "qcow2")),
        ),
        ("source", "", (("file", "/new/web-vda.qcow2"),)),
        ("seclabel", "", (("model", "dac"), ("relabel", "no"))),
        ("target", "", (("bus", "virtio"), ("dev", "vda"))),
        ("serial", "S-1", ()),
        ("boot", "", (("order", "1"),)),
        (
            "address",
            "",
            (("bus", "0x04"), ("domain", "0x0000"), ("function", "0x0"), ("slot", "0x00"), ("type", "pci")),
        ),
    ]


def test_what_belongs_to_a_running_vm_and_to_us_goes() -> None:
    """The id, aliases, indexes, the tap device, our claim and the generated labels are gone; foreign metadata stays."""
    root, result = rewrite()
    assert "id" not in root.attrib
    assert "urn:lab-backup" not in result.xml
    assert "libosinfo:libosinfo" in result.xml
    assert root.find("devices/disk/alias") is None
    assert root.find("devices/interface/target[@dev='vnet0']") is None
    assert "portid" not in result.xml
    assert shape(root.findall("seclabel")[0]) == [
        ("seclabel", "", (("model", "apparmor"), ("relabel", "yes"), ("type", "dynamic")))
    ]


def test_the_same_identity_keeps_uuid_and_addresses() -> None:
    """Without a new identity the VM is the same to its network and its software, but learns that time went back."""
    root, result = rewrite()
    assert result.uuid == UUID
    assert (root.findtext("name"), root.findtext("uuid")) == ("web", UUID)
    assert [mac.get("address") for mac in root.iterfind("devices/interface/mac")] == [
        "52:54:00:11:22:33",
        "52:54:00:11:22:34",
    ]
    assert root.find("devices/interface/target[@dev='web0']") is not None
    assert root.findtext("genid") not in {None, "c0ffee00-159d-4fe9-83b1-29b8a9748dfb"}


def test_a_rename_makes_a_new_identity() -> None:
    """UUID (with its copies in the SMBIOS tables), MACs, switch port, host device names, CID and sockets are new or libvirt's to choose."""
    root, result = rewrite(name="copy", new_identity=True)
    assert UUID not in result.xml.lower()
    assert root.findtext("uuid") == result.uuid == root.findtext("sysinfo/system/entry[@name='uuid']")
    assert root.findtext("sysinfo/system/entry[@name='serial']") == result.uuid
    macs = [mac.get("address", "") for mac in root.iterfind("devices/interface/mac")]
    assert len(set(macs)) == 2
    assert all(mac.startswith("52:54:00:") and mac not in XML for mac in macs)
    assert root.find("devices/interface/target") is None
    assert shape(root.findall("devices/vsock/cid")[0]) == [("cid", "", (("auto", "yes"),))]
    assert {
        source.get("path") for tag in ("serial", "console") for source in root.iterfind(f"devices/{tag}/source")
    } == {"/new/vm.console.sock"}
    assert any("port 5901" in note for note in result.notes)


def test_a_rename_drops_nothing_else() -> None:
    """Memory, CPUs with their pinning, firmware, clock, title, displays, passed-through devices and their addresses are untouched."""
    old, (new, _) = fromstring(XML), rewrite(name="copy", new_identity=True)
    for path in (
        "title",
        "memory",
        "vcpu",
        "features",
        "cpu",
        "clock",
        "os/type",
        "os/loader",
        "os/boot",
        "os/smbios",
        "devices/emulator",
    ):
        assert shape(new.findall(path)[0]) == shape(old.findall(path)[0])
    for path in ("devices/graphics", "devices/rng", "devices/hostdev", "devices/channel[2]"):
        assert [shape(item) for item in new.findall(path)] == [shape(item) for item in old.findall(path)]


def test_sockets_in_libvirts_own_folders_are_left_to_libvirt() -> None:
    """The agent's channel has no path any more, since its folder names a VM that is gone; a foreign socket stays."""
    root, _ = rewrite()
    agent, mine = root.findall("devices/channel")
    assert agent.find("source") is None
    assert agent.find("target[@name='org.qemu.guest_agent.0']") is not None
    assert shape(mine)[1] == ("source", "", (("mode", "connect"), ("path", "/srv/monitor")))


def test_serial_ports_move_beside_the_disks() -> None:
    """Files and sockets behind serial ports get names of their own where the disks are; a console and its serial port share one."""
    file, other, socket = "<source path='/srv/a'/>", "<source path='/srv/b'/>", "<source mode='bind' path='/srv/a'/>"
    devices = f"<serial type='file'>{file}</serial><serial type='file'>{other}</serial><serial type='unix'>{socket}</serial><console type='file'>{file}<log file='/srv/l'/></console>"
    root, result = rewrite(domain(devices), exists=lambda path: path == "/new/vm.console.log")
    sources = [source.get("path") for tag in ("serial", "console") for source in root.iterfind(f"devices/{tag}/source")]
    assert sources == [
        "/new/vm.console-2.log",
        "/new/vm.console-3.log",
        "/new/vm.console.sock",
        "/new/vm.console-2.log",
    ]
    assert [log.get("file") for log in root.iterfind("devices/console/log")] == ["/new/vm.console-4.log"]
    assert sum("moved to" in note for note in result.notes) == 3
    assert not result.warnings


def test_an_overwritten_vm_keeps_its_serial_ports() -> None:
    """What the VM has now is its own already."""
    devices = "<serial type='unix'><source mode='bind' path='/srv/console'/><target port='0'/></serial>"
    root, _ = rewrite(domain(devices), current=domain(devices))
    assert [source.get("path") for source in root.iterfind("devices/serial/source")] == ["/srv/console"]


def test_a_client_of_a_socket_stays() -> None:
    """A serial port that connects to a socket makes and removes nothing."""
    root, _ = rewrite(domain("<serial type='unix'><source mode='connect' path='/srv/server'/></serial>"))
    assert [source.get("path") for source in root.iterfind("devices/serial/source")] == ["/srv/server"]


def test_disks_that_were_not_backed_up_are_not_attached() -> None:
    """A disk at a path of the host is dropped with a warning, and a CD is taken out: neither content came from the backup."""
    root, result = rewrite()
    assert [target.get("dev") for target in root.iterfind("devices/disk/target")] == ["vda", "sda"]
    assert "/etc/shadow" not in result.xml
    assert "/iso/debian.iso" not in result.xml
    assert [warning for warning in result.warnings if "vdb" in warning]
    assert any("/iso/debian.iso" in note for note in result.notes)


def test_an_overwritten_vm_keeps_what_it_has_itself() -> None:
    """Disks, media, shares and arguments that the VM has now stay when it is overwritten; anything else still goes."""
    mine = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/data/big.raw'/><target dev='vdb'/></disk>"
    share = "<filesystem type='mount'><source dir='/srv/share'/><target dir='share'/></filesystem>"
    more = "<filesystem type='mount'><source dir='/etc'/><target dir='etc'/></filesystem>"
    arguments = "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>"
    root, result = rewrite(domain(mine + share + more, arguments), current=domain(share + mine, arguments))
    assert [target.get("dev") for target in root.iterfind("devices/disk/target")] == ["vda", "vdb"]
    assert [source.get("dir") for source in root.iterfind("devices/filesystem/source")] == ["/srv/share"]
    assert "qemu:commandline" in result.xml
    assert [warning for warning in result.warnings if "/etc" in warning] == list(result.warnings)


@pytest.mark.parametrize(
    ("devices", "rest", "os"),
    [
        pytest.param(
            "",
            "<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/etc/shadow'/></qemu:commandline>",
            "",
            id="QEMU arguments",
        ),
        pytest.param(
            "<filesystem type='mount'><source dir='/etc/shadow'/><target dir='x'/></filesystem>",
            "",
            "",
            id="shared folder",
        ),
        pytest.param(
            "<memory model='nvdimm'><source><path>/etc/shadow</path></source><target><size>1</size></target></memory>",
            "",
            "",
            id="memory module",
        ),
        pytest.param(
            "<interface type='ethernet'><script path='/etc/shadow'/></interface>", "", "", id="network script"
        ),
        pytest.param("<serial type='file'><source path='/etc/shadow'/></serial>", "", "", id="serial to a file"),
        pytest.param(
            "<serial type='unix'><source mode='bind' path='/etc/shadow'/></serial>", "", "", id="serial on a socket"
        ),
        pytest.param(
            "<channel type='unix'><source mode='bind' path='/etc/shadow'/></channel>", "", "", id="channel on a socket"
        ),
        pytest.param("<graphics type='vnc' socket='/etc/shadow'/>", "", "", id="display on a socket"),
        pytest.param("<console type='dev'><source path='/etc/shadow'/></console>", "", "", id="console on a device"),
        pytest.param("<channel type='pipe'><source path='/etc/shadow'/></channel>", "", "", id="channel over a pipe"),
        pytest.param(
            "<serial type='pty'><log file='/etc/shadow' append='off'/></serial>", "", "", id="log of a serial port"
        ),
        pytest.param("<audio id='1' type='file' path='/etc/shadow'/>", "", "", id="sound"),
        pytest.param("<pstore backend='acpi-erst'><path>/etc/shadow</path></pstore>", "", "", id="crash store"),
        pytest.param(
            "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>", "", "", id="random numbers"
        ),
        pytest.param("<emulator>/etc/shadow</emulator>", "", "", id="emulator"),
        pytest.param("<emulator>/usr/bin/../../etc/shadow</emulator>", "", "", id="emulator by a detour"),
        pytest.param(
            "", "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>", "", id="firmware setting"
        ),
        pytest.param(
            "", "", "<os><type>hvm</type><acpi><table type='slic'>/etc/shadow</table></acpi></os>", id="ACPI table"
        ),
        pytest.param(
            "<disk type='file' device='disk'><source file='/etc/shadow'/><target dev='vda'/></disk>",
            "",
            "",
            id="the same target twice",
        ),
        pytest.param(
            "<disk type='file' device='lun'><source file='/etc/shadow'/></disk>", "", "", id="a disk without target"
        ),
        pytest.param(
            "<disk type='file' device='floppy'><source file='/etc/shadow'/><target dev='fda'/></disk>",
            "",
            "",
            id="floppy",
        ),
        pytest.param(
            "", "", "<os><type>hvm</type><nvram type='file'><source file='/etc/shadow'/></nvram></os>", id="NVRAM"
        ),
    ],
)
def test_a_hostile_definition_does_not_reach_the_host(devices: str, rest: str, os: str) -> None:
    """Nothing of that kind is in the result, nor silently gone; a caller who trusts the definition gets it as it was."""
    xml = domain(devices, rest, os or "<os><type>hvm</type></os>")
    _, result = rewrite(xml, nvram_path=None)
    assert "/etc/shadow" not in result.xml
    assert "random" in devices or "graphics" in devices or result.warnings or result.notes
    if "nvram" not in os:  # its place is the caller's in any case
        assert "/etc/shadow" in rewrite(xml, nvram_path=None, trusted=True)[1].xml


@pytest.mark.parametrize("kind", ["static", "none"])
def test_a_fixed_label_is_left_out(kind: str) -> None:
    """A backup does not decide that QEMU runs as root or unconfined."""
    xml = domain(rest=f"<seclabel type='{kind}' model='dac'><label>root:root</label></seclabel>")
    root, result = rewrite(xml)
    assert root.find("seclabel") is None
    assert any("root:root" in warning for warning in result.warnings)


def test_files_of_the_host_that_stay_are_named() -> None:
    """A kernel outside of the backup stays, and is noted; where it is missing, that is a warning."""
    xml = domain(os="<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd</initrd></os>")
    root, result = rewrite(xml, exists=lambda path: path == "/boot/vmlinuz")
    assert root.findtext("os/kernel") == "/boot/vmlinuz"
    assert any("/boot/vmlinuz" in note for note in result.notes)
    assert [warning for warning in result.warnings if "/boot/initrd" in warning]


def test_passed_through_devices_stay_with_a_note() -> None:
    """A host device is kept, and the user is told to look whether it is there."""
    root, result = rewrite()
    assert root.find("devices/hostdev") is not None
    assert any("passed through" in note for note in result.notes)


def test_an_encrypted_disk_is_restored_as_the_guest_sees_it() -> None:
    """The encryption element would make QEMU look for a header that is not there; its loss is a warning."""
    xml = domain().replace(
        "<source file='/old/web.qcow2'/>",
        "<source file='/old/web.qcow2'><encryption format='luks'><secret uuid='x'/></encryption></source>",
    )
    root, result = rewrite(xml)
    assert root.find("devices/disk/source/encryption") is None
    assert any("encrypted" in warning for warning in result.warnings)


def test_a_scsi_device_of_the_host_becomes_an_image() -> None:
    """A LUN restored into a file is a disk, without raw input and output."""
    xml = domain().replace("type='file' device='disk'", "type='block' device='lun' rawio='yes' sgio='unfiltered'")
    root, result = rewrite(xml)
    disk = root.findall("devices/disk")[0]
    assert disk.attrib == {"type": "file", "device": "disk"}
    assert any("SCSI" in warning for warning in result.warnings)


def test_firmware_variables_go_where_they_were_put() -> None:
    """NVRAM points at the restored file; without one libvirt makes it anew, which is a warning."""
    root, _ = rewrite()
    assert root.findtext("os/nvram") == "/new/web_VARS.fd"
    root, result = rewrite(nvram_path=None)
    assert root.find("os/nvram") is None
    assert any("NVRAM" in warning for warning in result.warnings)


def test_an_emulator_of_another_host_is_replaced() -> None:
    """A path of QEMU that this host does not have is left for libvirt to choose."""
    root, result = rewrite(domain("<emulator>/usr/libexec/qemu-kvm</emulator>"), exists=lambda _path: False)
    assert root.find("devices/emulator") is None
    assert any("qemu-kvm" in note for note in result.notes)


def test_a_disk_that_the_definition_does_not_know_is_refused() -> None:
    """A backup whose disks and definition disagree is not guessed at."""
    with pytest.raises(DefinitionError, match="vdz"):
        rewrite(disks={**DISKS, "vdz": NewDisk("/x", "raw")})


@pytest.mark.parametrize(
    "xml",
    [
        pytest.param("", id="empty"),
        pytest.param("<domain", id="cut off"),
        pytest.param("<network/>", id="something else"),
        pytest.param(
            "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/shadow'>]><domain><name>&a;</name></domain>",
            id="external entity",
        ),
        pytest.param(
            "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain><name>&b;</name></domain>", id="entity bomb"
        ),
        pytest.param("<domain>" + "<a>" * 5000 + "</a>" * 5000 + "</domain>", id="deeply nested"),
        pytest.param("<domain><name>" + "x" * (5 << 20) + "</name></domain>", id="huge"),
        pytest.param(f"<domain><name>a/../b</name><uuid>{UUID}</uuid></domain>", id="name with a path"),
        pytest.param("<domain><name>a</name><uuid>../x</uuid></domain>", id="UUID with a path"),
        pytest.param(domain().replace("</domain>", "<devices/></domain>"), id="devices twice"),
    ],
)
def test_what_is_no_definition_is_refused(xml: str) -> None:
    """Hostile or broken XML is one clear error."""
    with pytest.raises(DefinitionError):
        read_definition(xml)


def test_a_long_backing_chain_is_no_deep_nesting() -> None:
    """The chain of a disk with many snapshots is dropped, however long it is."""
    chain = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>" * 150 + "</backingStore>" * 150
    root, _ = rewrite(domain().replace("<target dev='vda'", chain + "<target dev='vda'"))
    assert root.find("devices/disk/backingStore") is None


def test_the_definition_tells_what_a_restore_must_know() -> None:
    """Name, UUID, NVRAM, TPM, networks and the local disk files are read from it."""
    definition = read_definition(
        XML.replace("</devices>", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>")
    )
    assert (definition.name, definition.uuid, definition.tpm) == ("web", UUID, "2.0")
    assert definition.nvram == "/var/lib/libvirt/qemu/nvram/web_VARS.fd"
    assert definition.disks == {"vda": None, "sda": "/iso/debian.iso", "vdb": "/etc/shadow"}
    assert definition.networks == ("default",)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "-x", " a", "x" * 201, "a\0b"])
def test_names_that_no_vm_has(name: str) -> None:
    """A name that would be a path, an option or nothing is refused."""
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["web", "Web server 2", "wéb", "a.b-c_d"])
def test_names_that_vms_have(name: str) -> None:
    """Ordinary names, blanks and letters of other alphabets pass."""
    assert check_name(name) == name
