"""Backups of a VM that is off, on a real libvirt; its disks, firmware and TPM."""

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import libvirt
import pytest

from lab_backup.demo.disk import DiskSpec, make_disk, make_empty_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.errors import BusyError, LabBackupError
from lab_backup.nbd.server import QemuNbd
from lab_backup.sources.libvirt.bitmap import in_image
from lab_backup.sources.libvirt.source import plan_vm
from lab_backup.sources.source import Consistency
from lab_backup.units import KiB, MiB
from support.vm_backup import Repository, disk_content, traces
from support.waiting import wait_until

pytestmark = pytest.mark.libvirt


@pytest.fixture
def folder(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a folder for the images of one test."""
    path = Path(tempfile.mkdtemp(prefix="o-", dir=hypervisor.directory))
    hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def machine(hypervisor: Hypervisor, folder: Path) -> Iterator[Guest]:
    """Return a guest that is off, with a qcow2 disk `vda` and a raw disk `vdb`; nothing may be left in it at the end."""
    disks = [DiskSpec(folder / "a.qcow2"), DiskSpec(folder / "b.raw", "vdb", "raw")]
    make_disk(disks[0].path, 32 * MiB, hypervisor.account)
    make_disk(disks[1].path, 16 * MiB, hypervisor.account, image_format="raw")
    guest = define_guest(hypervisor, "offline", disks)
    yield guest
    left = traces(guest, hypervisor.directory)
    guest.remove()
    assert left == []


@pytest.fixture
def repository(hypervisor: Hypervisor, machine: Guest) -> Repository:
    """Return an empty repository for the guest."""
    return Repository(hypervisor.uri, machine.name)


def checkpoints(guest: Guest) -> list[str]:
    """Return the names of the guest's checkpoints."""
    return sorted(item.getName() for item in guest.domain.listAllCheckpoints(0))


def scribble(folder: Path, offset: int, count: int) -> None:
    """Write to the qcow2 disk of a guest that is off."""
    with QemuNbd(folder / "a.qcow2", "qcow2", read_only=False) as server, server.connect() as client:
        client.write(offset, b"\x5a" * count)
        client.flush()


def exact(repository: Repository, folder: Path) -> None:
    """Prove that what is in the repository is what is on the disks."""
    assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
    assert repository.disks["vdb"] == (folder / "b.raw").read_bytes()


def test_a_vm_that_is_off_is_backed_up_incrementally(
    machine: Guest, repository: Repository, folder: Path, hypervisor: Hypervisor
) -> None:
    """Full, unchanged, and changed while it is off: exact each time, and only the changed blocks are read."""
    first = repository.back_up()
    assert (first.consistency, first.incremental, first.notes) == (
        Consistency.OFFLINE,
        {"vda": False, "vdb": False},
        [],
    )
    exact(repository, folder)
    unchanged = repository.back_up()
    assert (unchanged.incremental, unchanged.read["vda"]) == ({"vda": True, "vdb": False}, 0)
    scribble(folder, 5 * MiB, 256 * KiB)
    vda, _vdb = plan_vm(machine.name, connect=hypervisor.uri, previous=repository.newest)
    assert vda.kind == "incremental"
    assert repository.back_up().read["vda"] == 256 * KiB
    exact(repository, folder)
    (name,) = checkpoints(machine)
    assert list(in_image(folder / "a.qcow2")) == [name]


def test_the_chain_goes_on_over_starts_and_stops(machine: Guest, repository: Repository, folder: Path) -> None:
    """Off, running, off: each backup builds on the one before, whichever way that was made."""
    repository.back_up()
    machine.start().wait_ready()
    machine.shell("echo one >/mnt/vda/one; sync")
    online = repository.back_up()
    assert (online.incremental["vda"], online.consistency) == (True, Consistency.FILESYSTEM)
    machine.shell("echo two >/mnt/vda/two; sync")
    machine.shutdown()
    offline = repository.back_up()
    assert offline.incremental["vda"]
    assert 0 < offline.read["vda"] < 2 * MiB
    exact(repository, folder)
    assert len(checkpoints(machine)) == 1


def test_a_vm_cannot_start_while_its_images_are_read(machine: Guest, repository: Repository) -> None:
    """Starting the VM during the backup fails, and works afterwards."""

    def start(_source: object) -> None:
        with pytest.raises(libvirt.libvirtError, match="lock"):
            machine.domain.create()

    repository.back_up(during=start)
    machine.start()


def test_a_failed_backup_leaves_no_bitmap(machine: Guest, repository: Repository, folder: Path) -> None:
    """After an exception neither libvirt nor the image knows the new checkpoint, and the old one is as good as before."""
    repository.back_up()
    before = checkpoints(machine)

    def fail(_source: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        repository.back_up(during=fail)
    assert checkpoints(machine) == before
    assert list(in_image(folder / "a.qcow2")) == before
    assert repository.back_up().incremental["vda"]


def test_two_backups_at_once_are_one_too_many(machine: Guest, repository: Repository, hypervisor: Hypervisor) -> None:
    """A second backup of the same VM is refused while the first one runs."""

    def intrude(_source: object) -> None:
        with pytest.raises(BusyError, match="being backed up already"):
            Repository(hypervisor.uri, machine.name).back_up()

    repository.back_up(during=intrude)


def test_a_bitmap_left_open_by_a_killed_qemu_is_not_trusted(machine: Guest, repository: Repository) -> None:
    """After QEMU was killed and the VM stayed off, the disk is read whole, and says why."""
    repository.back_up()
    machine.start().wait_ready()
    machine.kill_qemu()
    taken = repository.back_up()
    assert taken.reasons["vda"] == "its record of changes was left open when QEMU was killed"
    assert repository.back_up().incremental["vda"]


def test_an_old_image_without_bitmaps_is_read_whole_every_time(
    machine: Guest, repository: Repository, folder: Path
) -> None:
    """A qcow2 image of version 2 cannot hold a bitmap: its backup works, off and running, and a note says so."""
    subprocess.run(
        ["/usr/bin/qemu-img", "amend", "-q", "-f", "qcow2", "-o", "compat=0.10", str(folder / "a.qcow2")], check=True
    )
    taken = repository.back_up()
    assert any("vda" in note and "v2" in note for note in taken.notes)
    machine.start()
    taken = repository.back_up()
    assert taken.reasons["vda"] == "the previous backup left no checkpoint for it"
    assert any("vda" in note and "v2" in note for note in taken.notes)
    assert checkpoints(machine) == []


def test_a_saved_vm_is_only_crash_consistent(machine: Guest, repository: Repository) -> None:
    """The disks of a VM whose memory is saved to a file are as after a power failure, and the backup says so."""
    machine.start()
    machine.domain.managedSave(0)
    taken = repository.back_up()
    assert taken.consistency is Consistency.CRASH
    assert any("saved" in note for note in taken.notes)
    assert machine.domain.hasManagedSaveImage(0)


def test_a_disk_that_only_qemu_can_open_is_read_from_a_paused_vm(hypervisor: Hypervisor, folder: Path) -> None:
    """A VM that is off and whose disk is on the network is started without running, and off again afterwards."""
    path = folder / "far.raw"
    make_empty_disk(path, 8 * MiB, hypervisor.account, image_format="raw")
    path.write_bytes(b"\x77" * MiB + bytes(7 * MiB))
    hypervisor.account.own(path)
    socket = folder / "far.sock"
    with ExitStack() as stack:
        server = hypervisor.account.start(
            ["qemu-nbd", "-k", str(socket), "-f", "raw", "--persistent", str(path)],
            output=stack.enter_context((folder / "log").open("wb")),
        )
        stack.callback(server.wait, 10)
        stack.callback(server.terminate)
        wait_until(socket.exists)
        guest = define_guest(hypervisor, "far", [DiskSpec(folder / "none.raw", "vda", "raw")])
        stack.callback(guest.remove)
        xml = guest.domain.XMLDesc(0).replace("<disk type='file'", "<disk type='network'")
        xml = xml.replace(
            f"<source file='{folder}/none.raw'/>",
            f"<source protocol='nbd'><host transport='unix' socket='{socket}'/></source>",
        )
        hypervisor.connection().defineXML(xml)
        repository = Repository(hypervisor.uri, "far")
        taken = repository.back_up(scratch_directory=folder)
        assert taken.consistency is Consistency.OFFLINE
        assert repository.disks["vda"] == path.read_bytes()
        assert not guest.running
        assert traces(guest, hypervisor.directory) == []

        def resume(_source: object) -> None:
            guest.domain.resume()

        repository.back_up(scratch_directory=folder, during=resume)
        assert guest.running


def test_firmware_and_tpm_are_in_the_backup(hypervisor: Hypervisor, folder: Path) -> None:
    """The NVRAM file and the state of the emulated TPM are in the backup of a VM that has them, running and off."""
    path = folder / "u.qcow2"
    make_empty_disk(path, 8 * MiB, hypervisor.account)
    guest = define_guest(hypervisor, "uefi", [DiskSpec(path)], uefi=True, tpm=True)
    try:
        never_started = Repository(hypervisor.uri, "uefi").back_up()
        assert "nvram" not in never_started.configuration
        guest.start()
        taken = Repository(hypervisor.uri, "uefi").back_up()
        nvram = hypervisor.directory / "uefi.nvram"
        assert taken.configuration["nvram"] == nvram.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(taken.configuration["tpm.tar"])) as archive:
            assert [name for name in archive.getnames() if name.endswith("permall")]
        guest.destroy()
        assert Repository(hypervisor.uri, "uefi").back_up().configuration["nvram"] == nvram.read_bytes()
    finally:
        guest.remove()


def test_a_missing_image_is_a_clear_error(machine: Guest, repository: Repository, folder: Path) -> None:
    """An image that is not there fails the backup with its path, and leaves nothing."""
    (folder / "b.raw").rename(folder / "gone")
    with pytest.raises(LabBackupError, match=r"b\.raw"):
        repository.back_up()
    (folder / "gone").rename(folder / "b.raw")
    assert checkpoints(machine) == []
    assert in_image(folder / "a.qcow2") == {}
