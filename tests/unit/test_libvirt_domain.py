"""Reading a domain's XML, and which of its disks are backed up."""

import pytest

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.sources.libvirt.domain import Domain, left_out, without_ownership
from lab_backup.sources.libvirt.offline import is_possible
from lab_backup.sources.libvirt.ownership import NAMESPACE

LIVE = """
<domain type='kvm' id='3'>
  <name>web</name>
  <uuid>3b1e1a51-159d-4fe9-83b1-29b8a9748dfb</uuid>
  <os><nvram template='/t'>/nvram/web.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/images/over.qcow2' index='1'/>
      <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/><serial>S1</serial><alias name='virtio-disk0'/>
    </disk>
    <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/lv'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'>
      <driver type='raw'/><source protocol='rbd' name='pool/image'><host name='h'/></source><target dev='vdc'/>
    </disk>
    <disk type='volume' device='disk'><driver type='qcow2'/><source pool='p' volume='v'/><target dev='vdd'/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='floppy'><target dev='fda'/></disk>
    <disk type='file' device='disk'><source file='/ro'/><target dev='vde'/><readonly/></disk>
    <disk type='file' device='disk'><source file='/shared'/><target dev='vdf'/><shareable/></disk>
    <disk type='file' device='disk'><source file='/t'/><target dev='vdg'/><transient/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>"""


def domain(live: str = LIVE) -> Domain:
    """Return a running, persistent domain."""
    return Domain.parse(live, live, running=True, persistent=True)


def test_a_domain_is_read_from_its_xml() -> None:
    """Name, UUID, agent, firmware and TPM are found."""
    facts = domain()
    assert (facts.name, facts.uuid) == ("web", "3b1e1a51-159d-4fe9-83b1-29b8a9748dfb")
    assert (facts.agent, facts.nvram, facts.tpm) == ("connected", "/nvram/web.fd", True)


def test_disks_are_backed_up_unless_there_is_a_reason_not_to() -> None:
    """Media, read-only, shared and transient disks are left out, and each says why when it is asked for."""
    facts = domain()
    assert [disk.target for disk in facts.select()] == ["vda", "vdb", "vdc", "vdd"]
    assert [disk.target for disk in facts.select(["vdc", "vda"])] == ["vda", "vdc"]
    for target, why in {"sda": "cdrom", "vde": "read-only", "vdf": "shared", "vdg": "transient"}.items():
        with pytest.raises(UsageError, match=why):
            facts.select([target])
    with pytest.raises(NotFoundError, match="no disk 'vdz'"):
        facts.select(["vdz"])


def test_a_vm_without_disks_cannot_be_backed_up() -> None:
    """A VM that has only a CD drive is refused."""
    start, end = LIVE.index("<disk type='file' device='disk'>"), LIVE.index("<disk type='file' device='cdrom'>")
    rest = LIVE[:start] + LIVE[end:]
    rest = rest[: rest.index("<disk type='file' device='disk'>")] + rest[rest.index("<channel") :]
    with pytest.raises(UsageError, match="no disk"):
        domain(rest).select()


def test_only_qcow2_keeps_bitmaps() -> None:
    """The format decides whether increments are possible."""
    assert {disk.target: disk.has_bitmaps for disk in domain().select()} == {
        "vda": True,
        "vdb": False,
        "vdc": False,
        "vdd": True,
    }


def test_identity_tells_disks_apart() -> None:
    """Target, place and serial are the identity; an overlay over the old image is still the same disk."""
    vda, vdb, vdc, _vdd = domain().select()
    assert len({vda.identity, vdb.identity, vdc.identity}) == 3
    assert vda.was(vda.identity)
    assert vda.was("vda|file:/images/base.qcow2|S1")
    assert not vda.was("vda|file:/images/other.qcow2|S1")
    assert not vda.was("vda|file:/images/base.qcow2|S2")
    assert not vda.was("vdb|file:/images/base.qcow2|S1")
    assert not vda.was("nonsense")


def test_paths_are_known_of_files_and_devices_only() -> None:
    """What lies on a network has no path that could be opened here."""
    assert [disk.path for disk in domain().select()] == ["/images/over.qcow2", "/dev/vg/lv", None, None]


def test_the_mark_of_a_running_backup_is_not_kept() -> None:
    """Only our own element is taken out of the metadata, and XML without it comes back untouched."""
    other = "<a:x xmlns:a='urn:a'/>"
    mine = f"<b:owner xmlns:b='{NAMESPACE}' token='t'/>"
    marked = LIVE.replace("<os>", f"<metadata>{other}{mine}</metadata><os>")
    cleaned = without_ownership(marked)
    assert NAMESPACE not in cleaned
    assert "urn:a" in cleaned
    assert without_ownership(LIVE) is LIVE


def test_xml_bombs_are_not_unpacked() -> None:
    """Entities in a definition are refused."""
    bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]>" + LIVE.replace("<name>web", "<name>&a;")
    with pytest.raises(ValueError, match="Entit"):
        domain(bomb)


def test_a_disk_encrypted_below_the_guest_is_not_read_from_its_image() -> None:
    """Only QEMU, which has the secret, sees what the guest sees; either place of the element counts."""
    plain, *_ = domain().disks
    secret = (
        "<encryption format='luks'><secret type='passphrase' uuid='3b1e1a51-159d-4fe9-83b1-29b8a9748dfb'/></encryption>"
    )
    for live in (
        LIVE.replace("<serial>S1</serial>", f"<serial>S1</serial>{secret}"),
        LIVE.replace(
            "<source file='/images/over.qcow2' index='1'/>",
            f"<source file='/images/over.qcow2' index='1'>{secret}</source>",
        ),
    ):
        encrypted, *_ = domain(live).disks
        assert encrypted.encrypted
        assert is_possible([plain])
        assert not is_possible([plain, encrypted])


def test_disks_that_no_backup_holds_are_named() -> None:
    """Hard disks that are left out are told, with the reason; a CD is not missed."""
    assert [text.split()[1] for text in left_out(domain())] == ["vde", "vdf", "vdg"]
