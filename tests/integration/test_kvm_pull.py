"""Backups of a running VM, on a real libvirt and a real guest: what is read, and that nothing is left behind."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab_backup.demo.disk import DiskSpec, make_disk, make_empty_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.errors import BusyError, NotFoundError, UsageError
from lab_backup.extent import total
from lab_backup.sources.libvirt.errors import HypervisorUnreachableError
from lab_backup.sources.libvirt.source import identify_vm, plan_vm
from lab_backup.sources.source import Consistency, Quiesce
from lab_backup.units import KiB, MiB
from support.vm_backup import Repository, disk_content, traces
from support.waiting import wait_until

pytestmark = pytest.mark.libvirt


@pytest.fixture(scope="module")
def folder(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a folder for the images of this module's guests."""
    path = Path(tempfile.mkdtemp(prefix="m-", dir=hypervisor.directory))
    hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def machine(hypervisor: Hypervisor, folder: Path) -> Iterator[Guest]:
    """Return a guest with a qcow2 disk `vda` and a raw disk `vdb`, which all tests of the module share."""
    content = folder / "content"
    content.mkdir()
    (content / "hello").write_text("hello\n")
    disks = [DiskSpec(folder / "a.qcow2"), DiskSpec(folder / "b.raw", "vdb", "raw")]
    make_disk(disks[0].path, 64 * MiB, hypervisor.account, content=content)
    make_disk(disks[1].path, 32 * MiB, hypervisor.account, image_format="raw")
    guest = define_guest(hypervisor, "pull", disks)
    yield guest
    guest.remove()


@pytest.fixture
def running(machine: Guest, hypervisor: Hypervisor) -> Iterator[Guest]:
    """Return the shared guest, ready for commands; checks after the test that no backup has left anything in it."""
    if not machine.running:
        machine.start()
    machine.wait_ready()
    yield machine
    for checkpoint in machine.domain.listAllCheckpoints(0):
        checkpoint.delete(0)
    assert traces(machine, hypervisor.directory) == []
    if machine.running:
        assert machine.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING


@pytest.fixture
def repository(hypervisor: Hypervisor, machine: Guest) -> Repository:
    """Return an empty repository for the shared guest."""
    return Repository(hypervisor.uri, machine.name)


def write(guest: Guest, name: str, count: int, *, disk: str = "vda") -> None:
    """Write `count` bytes that no other file has to a file in the guest, down to its disk."""
    guest.shell(f"yes {uuid.uuid4().hex} | head -c {count} >/mnt/{disk}/{name}; sync")


def held_still(guest: Guest, repository: Repository, folder: Path) -> None:
    """Back up the paused guest and prove that the backups so far, laid together, are its disks to the last byte."""
    guest.shell("sync")
    guest.domain.suspend()
    try:
        repository.back_up()
        assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
        assert repository.disks["vdb"] == disk_content(folder / "b.raw", "raw", folder)
    finally:
        guest.domain.resume()


def checkpoints(guest: Guest) -> list[str]:
    """Return the names of the guest's checkpoints."""
    return sorted(item.getName() for item in guest.domain.listAllCheckpoints(0))


def test_an_incremental_backup_reads_what_changed_and_nothing_else(running: Guest, repository: Repository) -> None:
    """After 10 MiB of writes the second backup reads these 10 MiB, of the raw disk everything, and freezes both times."""
    first = repository.back_up(disks=["vda"])
    assert (first.consistency, first.incremental, first.reasons) == (
        Consistency.FILESYSTEM,
        {"vda": False},
        {"vda": None},
    )
    write(running, "ten", 10 * MiB)
    second = repository.back_up()
    assert second.incremental == {"vda": True, "vdb": False}
    assert second.reasons == {"vda": None, "vdb": "the disk is not in the previous backup"}
    assert 10 * MiB <= second.read["vda"] < 12 * MiB
    assert total(second.changed["vda"]) < 12 * MiB
    assert total(second.changed["vdb"]) == 32 * MiB
    assert second.consistency is Consistency.FILESYSTEM
    assert second.warnings == []


def test_full_and_incremental_together_are_the_disk(running: Guest, repository: Repository, folder: Path) -> None:
    """Three backups of a guest that is held still are, laid over each other, its disks byte for byte."""
    held_still(running, repository, folder)
    write(running, "one", 3 * MiB)
    write(running, "two", 1 * MiB, disk="vdb")
    held_still(running, repository, folder)
    running.shell("rm /mnt/vda/one; sync; fstrim /mnt/vda; echo small >/mnt/vda/small")
    held_still(running, repository, folder)


def test_what_the_guest_trims_is_not_read(running: Guest, repository: Repository, folder: Path) -> None:
    """A trim marks much as changed; it is reported as zeroes, and hardly anything is read."""
    write(running, "big", 24 * MiB)
    repository.back_up()
    running.shell("rm /mnt/vda/big; sync; fstrim /mnt/vda")
    taken = repository.back_up()
    assert total(taken.changed["vda"]) > 24 * MiB
    assert taken.read["vda"] < 4 * MiB
    held_still(running, repository, folder)


def test_the_backup_is_of_the_moment_it_was_opened(running: Guest, repository: Repository) -> None:
    """What the guest writes while the backup is read is in the next one, not in this one."""
    write(running, "before", 256 * KiB)
    repository.back_up(during=lambda _source: write(running, "during", 8 * MiB))
    taken = repository.back_up()
    assert 8 * MiB <= taken.read["vda"] < 10 * MiB


def test_only_the_newest_checkpoint_of_a_repository_stays(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """Each backup replaces the checkpoint of the one before, and leaves that of another repository alone."""
    other = Repository(hypervisor.uri, running.name)
    other.back_up()
    for _ in range(3):
        repository.back_up()
    kept = checkpoints(running)
    assert [name for name in kept if repository.id[:8] in name] == [
        f"lab-backup-{repository.id[:8]}-{repository.newest and repository.newest.backup_id}"
    ]
    assert len([name for name in kept if other.id[:8] in name]) == 1


def test_two_repositories_do_not_break_each_others_chain(
    running: Guest, repository: Repository, hypervisor: Hypervisor, folder: Path
) -> None:
    """Backups into two repositories in turn are all incremental, and exact."""
    other = Repository(hypervisor.uri, running.name)
    held_still(running, repository, folder)
    held_still(running, other, folder)
    for number in range(2):
        for chain in (repository, other):
            write(running, f"turn{number}", 1 * MiB)
            held_still(running, chain, folder)
            assert repository.back_up(disks=["vda"]).incremental == {"vda": True}


def test_leaving_by_an_exception_takes_everything_back(running: Guest, repository: Repository) -> None:
    """A backup that fails leaves the checkpoints as they were, and the next one builds on the last good one."""
    repository.back_up()
    before = checkpoints(running)
    write(running, "failed", 2 * MiB)

    def fail(_source: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        repository.back_up(during=fail)
    assert checkpoints(running) == before
    taken = repository.back_up()
    assert taken.incremental["vda"]
    assert 2 * MiB <= taken.read["vda"] < 4 * MiB


def test_a_backup_without_commit_leaves_no_checkpoint(running: Guest, repository: Repository) -> None:
    """Closing a source that nobody committed takes its checkpoint away."""
    before = checkpoints(running)
    with repository.source():
        assert len(checkpoints(running)) == len(before) + 1
    assert checkpoints(running) == before


def test_an_unchanged_disk_has_nothing_to_read(running: Guest, repository: Repository) -> None:
    """Between two backups of a paused guest nothing changes, so nothing is read."""
    running.domain.suspend()
    try:
        repository.back_up(disks=["vda"])
        taken = repository.back_up(disks=["vda"])
    finally:
        running.domain.resume()
    assert taken.incremental == {"vda": True}
    assert taken.changed == {"vda": []}


def test_a_paused_guest_is_backed_up_without_being_frozen(running: Guest, repository: Repository) -> None:
    """A paused VM stays paused; its backup says that it is crash-consistent, and why, as a note."""
    running.domain.suspend()
    try:
        taken = repository.back_up(disks=["vda"])
        assert running.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    finally:
        running.domain.resume()
    assert taken.consistency is Consistency.CRASH
    assert taken.notes == ["crash-consistent: the VM is paused"]
    assert taken.warnings == []


def test_a_dry_run_says_what_would_be_read_and_changes_nothing(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """The plan names kind, reason and bytes of each disk; libvirt's definition and checkpoints stay as they were."""
    repository.back_up()
    write(running, "planned", 5 * MiB)
    before = (running.domain.XMLDesc(0), checkpoints(running))
    vda, vdb = plan_vm(running.name, connect=hypervisor.uri, previous=repository.newest)
    assert (vda.kind, vda.reason, vda.size) == ("incremental", None, 64 * MiB)
    assert vda.bytes_to_read is not None
    assert 5 * MiB <= vda.bytes_to_read < 7 * MiB
    assert (vdb.kind, vdb.reason) == ("full", "raw disks keep no record of changes")
    assert (running.domain.XMLDesc(0), checkpoints(running)) == before


def test_a_full_backup_can_be_asked_for(running: Guest, repository: Repository, hypervisor: Hypervisor) -> None:
    """With `full`, the whole disk is read, and the plan says that it was asked for."""
    repository.back_up(disks=["vda"])
    taken = repository.back_up(disks=["vda"], full=True)
    assert taken.reasons == {"vda": "a full backup was asked for"}
    (plan,) = plan_vm(running.name, connect=hypervisor.uri, disks=["vda"], full=True, previous=repository.newest)
    assert plan.kind == "full"
    assert repository.back_up(disks=["vda"]).incremental == {"vda": True}


def test_the_configuration_is_what_libvirt_would_define_again(running: Guest, repository: Repository) -> None:
    """The backup holds the inactive definition, without the mark by which the backup itself claims the VM."""
    taken = repository.back_up(disks=["vda"])
    xml = taken.configuration["domain.xml"].decode()
    assert xml == running.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    assert "urn:lab-backup" not in xml


def test_a_second_backup_at_the_same_time_is_refused(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """While a backup runs, another one of the same VM is refused at once and disturbs nothing."""

    def intrude(_source: object) -> None:
        with pytest.raises(BusyError, match="is being backed up already"):
            Repository(hypervisor.uri, running.name).back_up()

    assert repository.back_up(during=intrude).read["vda"] > 0


def test_two_vms_are_backed_up_at_the_same_time(running: Guest, repository: Repository, folder: Path) -> None:
    """Sockets and scratch files of two backups on one host do not meet."""
    path = folder / "twin.qcow2"
    make_empty_disk(path, 16 * MiB, running.hypervisor.account)
    twin = define_guest(running.hypervisor, "twin", [DiskSpec(path)], agent=False).start()
    try:
        other = Repository(running.hypervisor.uri, "twin")
        repository.back_up(during=lambda _source: other.back_up())
        assert other.disks["vda"] == bytes(16 * MiB)
    finally:
        twin.remove()


def test_a_job_of_somebody_else_is_left_alone(running: Guest, repository: Repository, folder: Path) -> None:
    """A backup job without our claim is never ended: ours is refused, and the other one goes on."""
    scratch = folder / "theirs.scratch"
    xml = (
        f"<domainbackup mode='pull'><server transport='unix' socket='{folder}/theirs.sock'/><disks>"
        f"<disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>"
    )
    running.domain.backupBegin(xml, None, 0)
    try:
        with pytest.raises(BusyError, match="not ours"):
            repository.back_up()
        assert running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED
    finally:
        running.domain.abortJob()
    wait_until(lambda: running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE)
    repository.back_up()


@pytest.mark.usefixtures("running")
def test_a_guest_that_is_not_to_be_frozen_is_not(repository: Repository) -> None:
    """With the agent left alone, nothing is frozen, which is neither a warning nor a note: it was asked for."""
    taken = repository.back_up(disks=["vda"], quiesce=Quiesce.OFF)
    assert (taken.consistency, taken.warnings, taken.notes) == (Consistency.CRASH, [], [])


def test_names_that_do_not_exist_are_told_apart(running: Guest, hypervisor: Hypervisor, folder: Path) -> None:
    """An unknown VM, an unknown disk, a refused connection and an odd URI each get an error of their own."""
    assert identify_vm(running.domain.UUIDString(), hypervisor.uri) == (running.domain.UUIDString(), "pull")
    with pytest.raises(NotFoundError, match="no VM 'nobody'") as unknown:
        Repository(hypervisor.uri, "nobody").back_up()
    assert unknown.value.hint is not None
    assert "pull" in unknown.value.hint
    with pytest.raises(NotFoundError, match="no disk 'sdz'"):
        Repository(hypervisor.uri, "pull").back_up(disks=["sdz"])
    with pytest.raises(HypervisorUnreachableError):
        Repository(f"qemu+unix:///session?socket={folder}/none", "pull").back_up()
    with pytest.raises(UsageError):
        Repository("nonsense", "pull").back_up()
