"""Restores of whole VMs on a real libvirt: they boot with what they had, and nothing else is touched."""

import errno
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from defusedxml.ElementTree import fromstring

from lab_backup.blocks import BlockWriter
from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest
from lab_backup.errors import BusyError, LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.operations.backup import backup_vm
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.progress import Silent
from lab_backup.operations.repositories import init_repository, open_repository
from lab_backup.operations.restore import RestoreResult, restore_vm
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import DiskEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.sources.libvirt import define
from lab_backup.sources.libvirt.domain_xml import read_definition
from lab_backup.sources.libvirt.errors import HypervisorError
from lab_backup.sources.libvirt.swap import SwapError
from lab_backup.sources.libvirt.tpm_state import TpmStateError
from lab_backup.targets.errors import TargetError
from lab_backup.targets.raw_file import RawFileTarget
from lab_backup.units import MiB
from support.stored_vm import store_vm

pytestmark = pytest.mark.libvirt

SUMS = "cd /mnt && find . -type f | sort | xargs sha256sum"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Return an open, empty repository."""
    url = str(tmp_path / "repository")
    init_repository(url, passphrase=None, encryption=False)
    with open_repository(url, passphrase=None, cache_directory=tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def restore(repository: Repository, hypervisor: Hypervisor) -> Callable[..., RestoreResult]:
    """Return a function that restores the newest backup of `vm`, with the options of `restore_vm`."""

    def run(**options: Any) -> RestoreResult:
        return restore_vm(repository, find_backup(repository, "latest:vm/vm"), connect=hypervisor.uri, **options)

    return run


@pytest.fixture
def off(guest_factory: Callable[..., Guest], repository: Repository) -> Guest:
    """Return a guest that is shut off, with a backup."""
    guest = guest_factory()
    store_vm(repository, guest)
    return guest


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of each file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def xml_of(guest: Guest) -> str:
    """Return the definition of a guest."""
    return str(guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def test_a_running_vm_comes_back_under_a_new_name(
    guest: Guest, repository: Repository, hypervisor: Hypervisor, restore: Callable[..., RestoreResult]
) -> None:
    """The copy boots beside the original, with the same files, a UUID of its own, and no sign of a crash."""
    guest.shell("dd if=/dev/urandom of=/mnt/vda/blob bs=1M count=5; sync")
    before = guest.shell(SUMS)
    backup_vm(repository, guest.name, connect=hypervisor.uri)
    guest.shell("rm /mnt/vda/blob; sync")
    result = restore(name="copy", start=True)
    copy = Guest(hypervisor, "copy").wait_ready()
    assert result.warnings == ()
    assert result.started
    assert copy.shell(SUMS) == before
    assert "recovery" not in copy.shell("dmesg | grep EXT4 || true")
    assert copy.domain.UUIDString() == result.uuid != guest.domain.UUIDString()
    assert guest.running


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_lost_vm_comes_back_as_it_was(
    off: Guest, restore: Callable[..., RestoreResult], hypervisor: Hypervisor, guest_directory: Path, form: str
) -> None:
    """With domain and disk gone, the same name, UUID and place come back, in either format, owned by QEMU's account."""
    uuid, xml = off.domain.UUIDString(), xml_of(off)
    off.undefine()
    (guest_directory / "vm.qcow2").unlink()
    result = restore(format=form)
    restored = Guest(hypervisor, "vm")
    assert (result.vm, result.uuid, restored.domain.UUIDString()) == ("vm", uuid, uuid)
    path = Path(result.disks[0].path)
    assert path == guest_directory / f"vm.{form}"
    assert (path.stat().st_uid, path.stat().st_gid) == (hypervisor.account.uid, hypervisor.account.gid)
    if form == "qcow2":
        old, new = fromstring(xml), fromstring(xml_of(restored))
        for tag in (
            "memory",
            "vcpu",
            "os",
            "features",
            "clock",
            "devices/disk",
            "devices/channel",
            "devices/controller",
        ):
            assert [item.attrib for item in new.findall(tag)] == [item.attrib for item in old.findall(tag)]
    assert restored.start().wait_ready().shell("cat /mnt/vda/hello") == "hello\n"


def test_a_name_that_exists_is_refused(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """Without a new name or the order to overwrite, nothing is changed."""
    before, xml = listing(guest_directory), xml_of(off)
    with pytest.raises(TargetExistsError, match="already") as caught:
        restore()
    assert "--overwrite" in str(caught.value.hint)
    assert (listing(guest_directory), xml_of(off)) == (before, xml)


def test_a_vm_that_was_renamed_is_recognised(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """The same UUID under another name is said, instead of libvirt's error after an hour of writing."""
    off.domain.rename("other", 0)
    before = listing(guest_directory)
    with pytest.raises(TargetExistsError, match="other"):
        restore()
    assert listing(guest_directory) == before


def test_a_disk_file_that_exists_is_refused(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """Disks of a VM that is undefined stay, and the restore does not happen."""
    off.undefine()
    before = listing(guest_directory)
    with pytest.raises(TargetExistsError, match=r"vm\.qcow2"):
        restore()
    assert listing(guest_directory) == before
    assert not off.exists


def test_a_vm_is_overwritten_by_its_backup(
    guest: Guest,
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
) -> None:
    """The VM goes back to the backup: disk, definition and identity; its checkpoints are forgotten, and no other file remains."""
    before = guest.shell(SUMS)
    backup_vm(repository, guest.name, connect=hypervisor.uri)
    assert guest.domain.listAllCheckpoints(0)
    guest.shell("echo changed > /mnt/vda/hello; sync")
    guest.shutdown()
    uuid = guest.domain.UUIDString()
    notes = Notes()
    status = (guest_directory / "vm.qcow2").stat()
    names = set(listing(guest_directory))
    result = restore(overwrite=True, start=True, progress=notes)
    assert any(str(guest_directory / "vm.qcow2") in note for note in notes.texts)
    assert any("checkpoint" in note for note in notes.texts)
    assert result.warnings == ()
    assert guest.domain.listAllCheckpoints(0) == []
    assert guest.domain.UUIDString() == uuid
    assert set(listing(guest_directory)) == names
    after = (guest_directory / "vm.qcow2").stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (status.st_uid, status.st_gid, status.st_mode)
    assert guest.wait_ready().shell(SUMS) == before
    assert backup_vm(repository, guest.name, connect=hypervisor.uri).kind == "full"


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.texts.append(text)


def test_a_running_vm_is_not_overwritten(
    guest: Guest,
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
) -> None:
    """The VM must be off; until then nothing is written."""
    backup_vm(repository, guest.name, connect=hypervisor.uri)
    names = set(listing(guest_directory))
    with pytest.raises(BusyError, match="running"):
        restore(overwrite=True)
    assert guest.running
    assert set(listing(guest_directory)) == names


def test_another_vm_of_that_name_is_not_overwritten(
    off: Guest, guest_factory: Callable[..., Guest], restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """A VM that was made anew under the old name is not the one in the backup."""
    off.undefine()
    disk = DiskSpec(guest_directory / "vm.qcow2")
    guest_factory("vm", [disk])
    before = listing(guest_directory)
    with pytest.raises(TargetExistsError, match="UUID"):
        restore(overwrite=True)
    assert listing(guest_directory) == before


def test_a_disk_that_another_vm_uses_is_not_overwritten(
    off: Guest, guest_factory: Callable[..., Guest], restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """Overwriting one VM does not change the disk of another."""
    guest_factory("neighbour", [DiskSpec(guest_directory / "vm.qcow2")])
    before = listing(guest_directory)
    with pytest.raises(BusyError, match="neighbour"):
        restore(overwrite=True)
    assert listing(guest_directory) == before
    assert off.exists


def test_snapshots_are_not_lost_unasked(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path
) -> None:
    """A VM with snapshots is not overwritten."""
    off.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>", 0)
    before = listing(guest_directory)
    with pytest.raises(BusyError, match="snapshots"):
        restore(overwrite=True)
    assert listing(guest_directory) == before
    off.domain.snapshotLookupByName("s").delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def test_what_an_overwritten_vm_had_is_kept_or_named(
    guest_factory: Callable[..., Guest],
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
) -> None:
    """QEMU arguments that the VM has stay; a device and a disk that the backup does not have are named, and not touched."""
    guest = guest_factory()
    arguments = "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:env name='A' value='b'/></qemu:commandline>"
    connection = hypervisor.connection()
    connection.defineXML(xml_of(guest).replace("</domain>", f"{arguments}</domain>"))
    store_vm(repository, guest)
    more = "".join(
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='raw'/><source {source}/><target dev='{target}' bus='virtio'/></disk>"
        for kind, source, target in (
            ("file", f"file='{guest_directory}/more.raw'", "vdb"),
            ("block", "dev='/dev/no-such-device'", "vdc"),
        )
    )
    (guest_directory / "more.raw").write_text("mine")
    connection.defineXML(xml_of(guest).replace("</devices>", f"{more}</devices>"))
    result = restore(overwrite=True)
    assert "A" in [item.get("name") for item in fromstring(xml_of(guest)).iterfind("{*}commandline/{*}env")]
    assert result.warnings == (
        f"disk vdb is no longer attached; it stays as it is: {guest_directory}/more.raw",
        "disk vdc is no longer attached; it stays as it is: /dev/no-such-device",
    )
    assert (guest_directory / "more.raw").read_text() == "mine"


def refuse(*_arguments: object, **_options: object) -> None:
    """Fail as an operation of ours does."""
    raise LabBackupError("refused by the test")


def interrupt(*_arguments: object, **_options: object) -> None:
    """Fail as Ctrl-C does."""
    raise KeyboardInterrupt


def fail_writing(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Fail at the first chunk."""
    patch.setattr(RawFileTarget, "write", refuse)
    return LabBackupError


def fail_finishing(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Fail before the file has its name."""
    patch.setattr(RawFileTarget, "finish", refuse)
    return LabBackupError


def be_interrupted(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Press Ctrl-C."""
    patch.setattr(RawFileTarget, "finish", interrupt)
    return KeyboardInterrupt


def find_damage(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Find damaged data when some was written already."""
    whole = Reader.restore_disk

    def restore_part(reader: Reader, entry: DiskEntry, target: BlockWriter, **options: Any) -> None:
        whole(reader, entry, target, **options)
        raise DamagedError("a chunk does not match its id")

    patch.setattr(Reader, "restore_disk", restore_part)
    return DamagedError


def be_refused_by_libvirt(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Have a definition that libvirt does not take, after everything was written."""
    real = define.define

    def spoil(connection: Any, xml: str, name: str) -> Any:
        new = 'type="raw"' in xml  # and not the old definition, which must go in again
        return real(connection, xml.replace("memory", "spoiled") if new else xml, name)

    patch.setattr(define, "define", spoil)
    return HypervisorError


def fail_after_definition(patch: pytest.MonkeyPatch, guest: Guest) -> type[BaseException]:
    """Find the VM started by somebody at the very moment of the definition."""
    real = define.define

    def and_start(connection: Any, xml: str, name: str) -> Any:
        domain = real(connection, xml, name)
        if 'type="raw"' in xml and guest.name == name:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        return domain

    patch.setattr(define, "define", and_start)
    return BusyError


def read_back_wrong(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Have a disk that does not keep what was written."""
    finish = RawFileTarget.finish

    def spoil(target: RawFileTarget) -> None:
        target.write(1024, b"spoiled")  # in the file system's superblock
        finish(target)

    patch.setattr(RawFileTarget, "finish", spoil)
    return TargetError


def fail_half_way_through_the_swap(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Move the old disk aside, and then fail to move the new one in."""
    link = os.link

    def fail_second(source: Any, target: Any, **options: Any) -> None:
        if str(source).rpartition(".")[2].startswith("restore-"):
            raise OSError(errno.EIO, "the disk says no")
        link(source, target, **options)

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, "the disk says no")

    patch.setattr(os, "link", fail_second)
    patch.setattr(Path, "rename", fail)
    return SwapError


def start_meanwhile(patch: pytest.MonkeyPatch, guest: Guest) -> type[BaseException]:
    """Have somebody start the VM while its new disks are being written."""
    users = define.disk_users

    def and_start(connection: Any, but: str) -> dict[Path, str]:
        guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        return users(connection, but)

    patch.setattr(define, "disk_users", and_start)
    return BusyError


Failure = Callable[[pytest.MonkeyPatch, Guest], type[BaseException]]
ANYWHERE: list[Failure] = [fail_writing, fail_finishing, be_interrupted, find_damage, be_refused_by_libvirt]
OVERWRITING: list[Failure] = [read_back_wrong, fail_half_way_through_the_swap, start_meanwhile, fail_after_definition]


@pytest.mark.parametrize("failure", ANYWHERE)
def test_a_failed_restore_leaves_nothing(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path, failure: Failure
) -> None:
    """At whichever step it fails, no file remains, no VM is defined, and the original is as it was."""
    before, xml = listing(guest_directory), xml_of(off)
    with pytest.MonkeyPatch.context() as patch:
        expected = failure(patch, off)
        with pytest.raises(expected):
            restore(name="copy", format="raw")
    assert listing(guest_directory) == before
    assert xml_of(off) == xml
    assert [domain.name() for domain in off.hypervisor.connection().listAllDomains()] == ["vm"]


@pytest.mark.parametrize("failure", [*ANYWHERE, *OVERWRITING])
def test_a_failed_overwrite_leaves_the_old_vm_whole(
    off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path, failure: Failure
) -> None:
    """At whichever step it fails, the old disk is the same file with the same content, and the old definition is in force."""
    before, xml = listing(guest_directory), xml_of(off)
    content = (guest_directory / "vm.qcow2").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        expected = failure(patch, off)
        with pytest.raises(expected):
            restore(overwrite=True, format="raw")
    off.destroy()
    after = listing(guest_directory)
    assert {name: entry[:2] for name, entry in after.items()} == {name: entry[:2] for name, entry in before.items()}
    assert (guest_directory / "vm.qcow2").read_bytes() == content
    assert xml_of(off) == xml


def test_firmware_variables_come_back(
    guest_factory: Callable[..., Guest],
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
) -> None:
    """A VM with UEFI has its own variables again, under a new name and when it is overwritten; they belong to QEMU's account."""
    guest = guest_factory(uefi=True)
    old = Path(read_definition(xml_of(guest)).nvram or "")
    variables = os.urandom(4096)
    store_vm(repository, guest, files={"nvram": variables})
    restore(name="copy")
    path = Path(read_definition(xml_of(Guest(hypervisor, "copy"))).nvram or "")
    assert path.parent == guest_directory
    assert path.read_bytes() == variables
    assert path.stat().st_uid == hypervisor.account.uid
    old.write_bytes(b"old")
    result = restore(overwrite=True)
    assert result.warnings == ()
    assert old.read_bytes() == variables
    assert read_definition(xml_of(guest)).nvram == str(old)
    old.unlink()


def test_a_vm_brings_its_tpm_along(
    guest_factory: Callable[..., Guest],
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
) -> None:
    """The TPM's state lies where libvirt looks for it, under the new UUID or in the place of what is there, and swtpm takes it."""
    guest = guest_factory(tpm=True)
    guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    guest.destroy()
    store_vm(repository, guest, files={"tpm.tar": tpm_archive(guest, hypervisor)})
    states = next(hypervisor.directory.rglob(f"swtpm/{guest.domain.UUIDString()}")).parent
    names = set(states.iterdir())
    old = states / guest.domain.UUIDString() / "tpm2/tpm2-00.permall"
    state = old.read_bytes()
    result = restore(name="copy")
    copy = Guest(hypervisor, "copy")
    new = states / str(result.uuid) / "tpm2/tpm2-00.permall"
    assert new.read_bytes() == state
    assert new.stat().st_uid == hypervisor.account.uid
    copy.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    copy.remove()
    old.write_bytes(b"other")
    with pytest.MonkeyPatch.context() as patch:
        be_refused_by_libvirt(patch, guest)
        with pytest.raises(HypervisorError):
            restore(overwrite=True, format="raw")
    assert old.read_bytes() == b"other"
    result = restore(overwrite=True)
    assert old.read_bytes() == state
    assert set(states.iterdir()) == names
    assert result.warnings == ()


def tpm_archive(guest: Guest, hypervisor: Hypervisor) -> bytes:
    """Return the TPM's state as a backup has it."""
    folder = next(hypervisor.directory.rglob(f"swtpm/{guest.domain.UUIDString()}"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in folder.rglob("*.permall"):
            archive.add(path, str(path.relative_to(folder)))
    return buffer.getvalue()


def test_a_tpm_without_state_is_said(
    guest_factory: Callable[..., Guest], repository: Repository, restore: Callable[..., RestoreResult]
) -> None:
    """Where the backup has no state of the TPM, the user learns what is lost."""
    store_vm(repository, guest_factory(tpm=True))
    assert any("TPM" in warning for warning in restore(name="copy").warnings)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "tpm2/../../escaped", "tpm2/.lock", "tpm2/a/b"])  # noqa: S108 - hostile, not used
def test_a_hostile_tpm_archive_is_refused(
    guest_factory: Callable[..., Guest],
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
    name: str,
) -> None:
    """An archive that would write elsewhere ends the restore before anything is written."""
    guest = guest_factory(tpm=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    store_vm(repository, guest, files={"tpm.tar": buffer.getvalue()})
    before = listing(guest_directory)
    with pytest.raises(TpmStateError):
        restore(name="copy")
    assert listing(guest_directory) == before
    assert not Guest(hypervisor, "copy").exists
    assert not list(hypervisor.directory.rglob("*escaped*"))


def test_a_pool_takes_the_disks(
    off: Guest, restore: Callable[..., RestoreResult], hypervisor: Hypervisor, guest_directory: Path
) -> None:
    """Disks go into the pool's folder and libvirt knows them as volumes; other kinds of pools and unknown ones are refused."""
    folder = guest_directory / "pool"
    folder.mkdir()
    hypervisor.account.own(folder)
    connection = hypervisor.connection()
    pool = connection.storagePoolCreateXML(
        f"<pool type='dir'><name>p</name><target><path>{folder}</path></target></pool>"
    )
    try:
        result = restore(name="copy", pool="p")
        assert Path(result.disks[0].path).parent == folder
        assert pool.listVolumes() == [Path(result.disks[0].path).name]
        with pytest.raises(NotFoundError, match="none") as caught:
            restore(name="other", pool="none")
        assert "p" in str(caught.value.hint)
        with pytest.raises(UsageError, match="both"):
            restore(name="other", pool="p", directory=folder)
    finally:
        pool.destroy()
    assert off.exists


def test_a_folder_takes_the_disks(off: Guest, restore: Callable[..., RestoreResult], guest_directory: Path) -> None:
    """Disks go where they are told to; a folder that does not exist is named."""
    folder = guest_directory / "elsewhere"
    with pytest.raises(UsageError, match="elsewhere"):
        restore(name="copy", directory=folder)
    folder.mkdir()
    assert restore(name="copy", directory=folder).disks[0].path == str(folder / "copy-vda.qcow2")
    assert off.exists


def test_several_disks_of_both_formats(
    guest_factory: Callable[..., Guest],
    repository: Repository,
    hypervisor: Hypervisor,
    restore: Callable[..., RestoreResult],
    guest_directory: Path,
) -> None:
    """Each disk keeps its format and its place in the VM; the guest finds its files on both."""
    disks = []
    for target, form in (("vda", "qcow2"), ("vdb", "raw")):
        content = guest_directory / f"{target}.content"
        content.mkdir()
        (content / "name").write_text(target)
        disks.append(DiskSpec(guest_directory / f"{target}.{form}", target, form))  # type: ignore[arg-type]  # one of the two
        make_disk(disks[-1].path, 32 * MiB, hypervisor.account, content=content, image_format=disks[-1].format)
    store_vm(repository, guest_factory("vm", disks))
    result = restore(name="copy", start=True)
    assert [(disk.name, disk.format) for disk in result.disks] == [("vda", "qcow2"), ("vdb", "raw")]
    copy = Guest(hypervisor, "copy").wait_ready()
    assert copy.shell("cat /mnt/vda/name /mnt/vdb/name") == "vdavdb"


def test_a_vm_that_does_not_start_is_kept(
    off: Guest, repository: Repository, hypervisor: Hypervisor, restore: Callable[..., RestoreResult]
) -> None:
    """Where only the start fails, the restored VM stays, and a warning says why."""
    store_vm(repository, off, xml=xml_of(off).replace(str(hypervisor.image.kernel), "/no/such/kernel"))
    result = restore(name="copy", start=True)
    assert not result.started
    assert len([warning for warning in result.warnings if "/no/such/kernel" in warning]) == 2
    assert Guest(hypervisor, "copy").exists


def test_a_hostile_definition_gets_no_host_file(
    off: Guest, repository: Repository, hypervisor: Hypervisor, restore: Callable[..., RestoreResult]
) -> None:
    """A disk over a file of the host that somebody put into the backup's definition is not attached, and that is said."""
    disk = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/etc/shadow'/><target dev='vdz' bus='virtio'/></disk>"
    store_vm(repository, off, xml=xml_of(off).replace("</devices>", f"{disk}</devices>"))
    result = restore(name="copy")
    assert "/etc/shadow" not in xml_of(Guest(hypervisor, "copy"))
    assert any("vdz" in warning for warning in result.warnings)


BRIDGE = """#!{python}
import socket, sys, threading
far = socket.socket(socket.AF_UNIX)
far.connect({path!r})
def forward():
    while data := sys.stdin.buffer.raw.read(65536):
        far.sendall(data)
    far.shutdown(socket.SHUT_WR)
threading.Thread(target=forward, daemon=True).start()
while data := far.recv(65536):
    sys.stdout.buffer.raw.write(data)
"""


@pytest.fixture
def remote(hypervisor: Hypervisor, guest_directory: Path, short_directory: Path) -> Iterator[str]:
    """Return the hypervisor's address by a transport that could lead anywhere, with a storage pool `far` at its end."""
    script = short_directory / "bridge"
    script.write_text(BRIDGE.format(python=sys.executable, path=hypervisor.uri.rpartition("=")[2]))
    script.chmod(0o700)
    folder = guest_directory / "far"
    folder.mkdir()
    hypervisor.account.own(folder)
    xml = f"<pool type='dir'><name>far</name><target><path>{folder}</path></target></pool>"
    pool = hypervisor.connection().storagePoolCreateXML(xml)
    yield f"qemu+ext:///session?command={script}"
    pool.destroy()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_vm_is_restored_to_another_host(
    off: Guest, repository: Repository, hypervisor: Hypervisor, guest_directory: Path, remote: str, form: str
) -> None:
    """Disks travel over libvirt's connection into a pool, thin, and the VM boots from them."""
    store_vm(repository, off)
    backup = find_backup(repository, "latest:vm/vm")
    result = restore_vm(repository, backup, connect=remote, name="copy", pool="far", format=form, start=True)
    path = guest_directory / "far" / f"copy-vda.{form}"
    assert [disk.path for disk in result.disks] == [str(path)]
    assert path.stat().st_blocks * 512 < 32 * MiB
    assert form == "qcow2" or path.stat().st_size == 64 * MiB
    assert result.warnings == ()
    assert Guest(hypervisor, "copy").wait_ready().shell("cat /mnt/vda/hello") == "hello\n"


def test_a_failed_restore_to_another_host_leaves_nothing(
    off: Guest, repository: Repository, hypervisor: Hypervisor, guest_directory: Path, remote: str
) -> None:
    """Where data is damaged or libvirt refuses the definition, no volume and no VM remain, and what was there stays."""
    backup = find_backup(repository, "latest:vm/vm")
    failures: dict[Failure, type[BaseException]] = {}
    for failure in (be_refused_by_libvirt, find_damage_while_reading):
        with pytest.MonkeyPatch.context() as patch:
            failures[failure] = failure(patch, off)
            with pytest.raises(failures[failure]):
                restore_vm(repository, backup, connect=remote, name="copy", pool="far", format="raw")
        assert list((guest_directory / "far").iterdir()) == []
        assert not Guest(hypervisor, "copy").exists
    (guest_directory / "far/copy-vda.raw").write_text("mine")
    with pytest.raises(TargetExistsError, match="copy-vda"):
        restore_vm(repository, backup, connect=remote, name="copy", pool="far", format="raw")
    assert (guest_directory / "far/copy-vda.raw").read_text() == "mine"


def find_damage_while_reading(patch: pytest.MonkeyPatch, _guest: Guest) -> type[BaseException]:
    """Find damaged data after the first chunk."""
    whole = Reader.read_disk

    def read_part(reader: Reader, entry: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for piece in whole(reader, entry, *arguments, **options):
            yield piece
            if entry.name == "vda":
                raise DamagedError("a chunk does not match its id")

    patch.setattr(Reader, "read_disk", read_part)
    return DamagedError


def test_what_another_host_cannot_do_is_said(off: Guest, repository: Repository, remote: str) -> None:
    """Folders of another host are out of reach, and its VMs are not overwritten from afar."""
    backup = find_backup(repository, "latest:vm/vm")
    with pytest.raises(UsageError, match="pool"):
        restore_vm(repository, backup, connect=remote, name="copy", directory=Path("/srv"))
    with pytest.raises(UsageError, match="overwritten"):
        restore_vm(repository, backup, connect=remote, overwrite=True, pool="far")
    with pytest.raises(NotFoundError, match="default"):
        restore_vm(repository, backup, connect=remote, name="copy")
    assert off.exists
