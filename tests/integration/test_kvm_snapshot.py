"""Backups of a running VM from below a temporary snapshot, on a real libvirt."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.sources.libvirt.errors import LostBackupError
from lab_backup.sources.libvirt.pull import PullBackup, PullUnsupportedError
from lab_backup.sources.libvirt.request import Method
from lab_backup.sources.source import Consistency
from lab_backup.units import MiB
from support.vm_backup import Repository, disk_content, guards, kill_backup_at, traces
from support.waiting import wait_until

pytestmark = pytest.mark.libvirt


@pytest.fixture(scope="module")
def folder(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a folder for the images of this module's guest."""
    path = Path(tempfile.mkdtemp(prefix="n-", dir=hypervisor.directory))
    hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def machine(hypervisor: Hypervisor, folder: Path) -> Iterator[Guest]:
    """Return a guest with a qcow2 disk `vda` and a raw disk `vdb`, which all tests of the module share."""
    disks = [DiskSpec(folder / "a.qcow2"), DiskSpec(folder / "b.raw", "vdb", "raw")]
    make_disk(disks[0].path, 48 * MiB, hypervisor.account)
    make_disk(disks[1].path, 16 * MiB, hypervisor.account, image_format="raw")
    guest = define_guest(hypervisor, "snapshot", disks)
    yield guest
    guest.remove()


@pytest.fixture
def running(machine: Guest, hypervisor: Hypervisor, folder: Path) -> Iterator[Guest]:
    """Return the shared guest, ready for commands; after the test it writes to its own disks again, and all is tidy."""
    if not machine.running:
        machine.start()
    machine.wait_ready()
    yield machine
    wait_until(lambda: traces(machine, hypervisor.directory) == [], 20)
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        xml = machine.domain.XMLDesc(flags)
        assert f"{folder}/a.qcow2" in xml
        assert f"{folder}/b.raw" in xml
        assert ".overlay" not in xml
    for checkpoint in machine.domain.listAllCheckpoints(0):
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


@pytest.fixture
def repository(hypervisor: Hypervisor, machine: Guest) -> Repository:
    """Return an empty repository for the shared guest."""
    return Repository(hypervisor.uri, machine.name)


def file_sum(guest: Guest, name: str) -> str:
    """Return the checksum of a file in the guest."""
    return guest.shell(f"sha256sum /mnt/vda/{name}").split()[0]


def file_in(content: bytes, name: str, folder: Path) -> bytes:
    """Return a file from an image of ext4, read without mounting it."""
    image, out = folder / "read.raw", folder / "read.out"
    image.write_bytes(content)
    subprocess.run(["/sbin/debugfs", "-R", f"dump /{name} {out}", str(image)], check=True, capture_output=True)
    data = out.read_bytes()
    image.unlink()
    out.unlink()
    return data


def test_a_snapshot_backup_is_the_moment_it_was_opened(running: Guest, repository: Repository, folder: Path) -> None:
    """What the guest writes meanwhile is not in the backup, and is not lost: it is on its own disk afterwards."""
    running.shell("head -c 1048576 /dev/urandom >/mnt/vda/before; sync; cp /mnt/vda/before /mnt/vdb/before; sync")
    before = file_sum(running, "before")

    def write(_source: object) -> None:
        running.shell("head -c 4194304 /dev/urandom >/mnt/vda/during; echo changed >/mnt/vda/before; sync")

    taken = repository.back_up(method=Method.SNAPSHOT, during=write)
    assert (taken.consistency, taken.incremental) == (Consistency.FILESYSTEM, {"vda": False, "vdb": False})
    content = file_in(bytes(repository.disks["vda"]), "before", folder)
    assert hashlib.sha256(content).hexdigest() == before
    during = file_sum(running, "during")
    running.shell("sync")
    running.domain.suspend()
    after = disk_content(folder / "a.qcow2", "qcow2", folder)
    running.domain.resume()
    assert hashlib.sha256(file_in(after, "during", folder)).hexdigest() == during
    taken = repository.back_up(method=Method.SNAPSHOT)
    assert taken.reasons["vda"] == "it is read from below a snapshot, without a record of changes"


@pytest.mark.usefixtures("running")
def test_where_pull_mode_is_missing_the_snapshot_is_used(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hypervisor without pull mode is backed up by a snapshot, and a note tells why."""

    def refuse(*_arguments: object) -> None:
        raise PullUnsupportedError("this hypervisor cannot export a running VM")

    monkeypatch.setattr(PullBackup, "_begin_job", refuse)
    taken = repository.back_up()
    assert taken.consistency is Consistency.FILESYSTEM
    assert any("read from below a snapshot" in note for note in taken.notes)
    with pytest.raises(PullUnsupportedError):
        repository.back_up(method=Method.PULL)


def test_a_chain_of_checkpoints_survives_a_snapshot_backup(
    running: Guest, repository: Repository, hypervisor: Hypervisor, folder: Path
) -> None:
    """A snapshot backup into another repository does not break the increments of the first."""
    repository.back_up()
    other = Repository(hypervisor.uri, running.name)
    other.back_up(
        method=Method.SNAPSHOT, during=lambda _source: running.shell("echo meanwhile >/mnt/vda/meanwhile; sync")
    )
    running.domain.suspend()
    try:
        assert repository.back_up().incremental["vda"]
        assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
    finally:
        running.domain.resume()


def test_killing_the_backup_merges_the_overlays_back(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """After SIGKILL the guard merges what the guest wrote back into its disks."""
    with kill_backup_at(repository, "snapshot") as child:
        running.shell("echo kept >/mnt/vda/kept; sync")
        child.kill()
        wait_until(lambda: traces(running, hypervisor.directory) == [], 20)
    assert running.shell("cat /mnt/vda/kept") == "kept\n"


def test_overlays_of_a_backup_that_died_with_its_guard_are_merged_by_the_next(
    running: Guest, repository: Repository
) -> None:
    """The next backup of whatever method finds the overlays and merges them back first."""
    with kill_backup_at(repository, "snapshot") as child:
        os.kill(guards(running)[0], signal.SIGKILL)
        child.kill()
        child.wait()
    running.shell("echo found >/mnt/vda/found; sync")
    assert ".overlay" in running.domain.XMLDesc(0)
    taken = repository.back_up()
    assert any("merged back" in note for note in taken.notes)
    assert running.shell("cat /mnt/vda/found") == "found\n"


def test_a_guest_that_ends_meanwhile_is_whole_afterwards(running: Guest, repository: Repository) -> None:
    """When the VM stops, the overlay is merged into the image off line, and the definition names the image again."""

    def stop(_source: object) -> None:
        running.shell("echo last >/mnt/vda/last; sync")
        running.kill_qemu()

    with pytest.raises(LostBackupError, match="stopped"):
        repository.back_up(method=Method.SNAPSHOT, during=stop)
    assert ".overlay" not in running.domain.XMLDesc(0)
    running.start().wait_ready()
    assert running.shell("cat /mnt/vda/last") == "last\n"
