"""What goes wrong around a backup of a running VM, on a real one: the guest goes on, and the next backup succeeds."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from lab_backup.demo.disk import DiskSpec, make_disk, make_empty_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.errors import BusyError
from lab_backup.sources.libvirt import ownership
from lab_backup.sources.libvirt.bitmap import in_image
from lab_backup.sources.libvirt.checkpoint import belongs_to
from lab_backup.sources.libvirt.errors import HypervisorError, LostBackupError, QuiesceError
from lab_backup.sources.libvirt.guard_process import Limits
from lab_backup.sources.libvirt.ownership import Owner
from lab_backup.sources.libvirt.pull import PullBackup
from lab_backup.sources.libvirt.request import Request
from lab_backup.sources.libvirt.takeover import clear_the_way
from lab_backup.sources.source import Consistency, OpenSource, Quiesce
from lab_backup.units import KiB, MiB
from support.vm_backup import Repository, disk_content, guards, kill_backup_at, traces
from support.waiting import wait_until

pytestmark = pytest.mark.libvirt

LIMITS = Limits()


@pytest.fixture(scope="module")
def folder(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a folder for the images of this module's guests."""
    path = Path(tempfile.mkdtemp(prefix="f-", dir=hypervisor.directory))
    hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def machine(hypervisor: Hypervisor, folder: Path) -> Iterator[Guest]:
    """Return a guest with a qcow2 disk `vda` and an empty one `vdb`, which all tests of the module share."""
    disks = [DiskSpec(folder / "a.qcow2"), DiskSpec(folder / "b.qcow2", "vdb")]
    make_disk(disks[0].path, 64 * MiB, hypervisor.account)
    make_empty_disk(disks[1].path, 16 * MiB, hypervisor.account)
    guest = define_guest(hypervisor, "faults", disks)
    yield guest
    guest.remove()


@pytest.fixture
def running(machine: Guest, hypervisor: Hypervisor) -> Iterator[Guest]:
    """Return the shared guest, ready for commands; checks after the test that no backup has left anything in it."""
    if not machine.running:
        machine.start()
    machine.wait_ready()
    yield machine
    wait_until(lambda: traces(machine, hypervisor.directory) == [], 20)
    for checkpoint in machine.domain.listAllCheckpoints(0):
        checkpoint.delete(0 if machine.running else libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


@pytest.fixture
def repository(hypervisor: Hypervisor, machine: Guest) -> Repository:
    """Return an empty repository for the shared guest."""
    return Repository(hypervisor.uri, machine.name)


def checkpoints(guest: Guest) -> list[str]:
    """Return the names of the guest's checkpoints."""
    return sorted(item.getName() for item in guest.domain.listAllCheckpoints(0))


def qmp(guest: Guest, command: str, **arguments: str) -> Any:
    """Send a command to QEMU and return its answer."""
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, request, 0))["return"]


def first_node(guest: Guest) -> str:
    """Return the QEMU node of a disk of the guest, no matter which."""
    return str(qmp(guest, "query-block")[0]["inserted"]["node-name"])


def exact(guest: Guest, repository: Repository, folder: Path) -> None:
    """Prove that one more backup of the guest, held still, makes the repository equal to its disk."""
    guest.domain.suspend()
    try:
        repository.back_up()
        assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
    finally:
        guest.domain.resume()


def is_frozen(guest: Guest) -> bool:
    """Tell what the guest agent says about the file systems."""
    answer = libvirt_qemu.qemuAgentCommand(guest.domain, '{"execute":"guest-fsfreeze-status"}', 10, 0)
    return "frozen" in answer


@pytest.mark.parametrize("place", ["open", "frozen"])
def test_killing_the_backup_frees_the_guest_within_seconds(
    running: Guest, repository: Repository, hypervisor: Hypervisor, folder: Path, place: str
) -> None:
    """After SIGKILL the guard thaws, ends the job, removes checkpoint and files, and ends; the chain before is intact."""
    repository.back_up()
    before = checkpoints(running)
    with kill_backup_at(repository, place) as child:
        assert is_frozen(running) == (place == "frozen")
        assert (running.domain.jobInfo()[0] != 0) == (place == "open")
        child.kill()
        wait_until(lambda: traces(running, hypervisor.directory) == [], 10)
    assert not is_frozen(running)
    assert checkpoints(running) == before
    running.shell("echo written >/mnt/vda/after-kill; sync")
    assert repository.back_up().incremental["vda"]
    exact(running, repository, folder)


def test_signals_of_a_terminal_do_not_end_the_guard(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """SIGINT, SIGHUP and SIGTERM leave the guard at its work, which it does when the backup itself has ended."""
    with kill_backup_at(repository, "open") as child:
        (guard,) = guards(running)
        assert os.getsid(guard) != os.getsid(child.pid)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(guard, number)
        time.sleep(0.5)
        assert guards(running) == [guard]
        child.kill()
        wait_until(lambda: traces(running, hypervisor.directory) == [], 10)


def test_a_backup_that_died_together_with_its_guard_is_cleaned_up_by_the_next(
    running: Guest, repository: Repository
) -> None:
    """A job whose claim names a dead process of this host is ended, with a note, and the new backup goes through."""
    repository.back_up()
    with kill_backup_at(repository, "open") as child:
        os.kill(guards(running)[0], signal.SIGKILL)
        child.kill()
        child.wait()
    assert running.domain.jobInfo()[0] != 0
    taken = repository.back_up()
    assert taken.incremental["vda"]
    assert any("ended the job that backup killed" in note for note in taken.notes)
    assert not [name for name in checkpoints(running) if "killed" in name]


def test_a_claim_of_another_host_is_broken_when_it_ran_out_and_does_not_move(running: Guest) -> None:
    """An expired claim is watched for a while, since clocks differ: one that is renewed meanwhile is alive."""
    request = Request(repository_id="r", backup_id="b")
    past = datetime.now(UTC) - timedelta(hours=1)
    theirs = replace(Owner.new("other", "theirs", now=past), host="elsewhere", process="boot/pid/1/1")
    ownership.write(running.domain, theirs)
    assert clear_the_way(running.domain, request, local=True, watch=1) == []
    assert ownership.read(running.domain) is None

    ownership.write(running.domain, theirs)
    renew = threading.Timer(0.5, lambda: ownership.write(running.domain, theirs.renewed(past + timedelta(seconds=30))))
    renew.start()
    with pytest.raises(BusyError, match="theirs on elsewhere"):
        clear_the_way(running.domain, request, local=True, watch=3)
    renew.join()

    ownership.write(running.domain, theirs.renewed(datetime.now(UTC)))
    with pytest.raises(BusyError, match="theirs on elsewhere"):
        clear_the_way(running.domain, request, local=True, watch=0)
    ownership.write(running.domain, None)


@pytest.mark.usefixtures("running")
def test_a_stopped_backup_still_holds_its_vm(repository: Repository) -> None:
    """A backup whose process only sleeps is alive: another one is refused."""
    with kill_backup_at(repository, "open") as child:
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(BusyError, match="backup killed"):
            repository.back_up()


def test_killing_the_guard_ends_the_backup_cleanly(running: Guest, repository: Repository) -> None:
    """Without its guard a backup does not go on: it fails before it could be committed, and cleans up itself."""

    def kill(_source: OpenSource) -> None:
        os.kill(guards(running)[0], signal.SIGKILL)
        wait_until(lambda: guards(running) == [], 5)

    with pytest.raises(LostBackupError, match="the guard process is gone"):
        repository.back_up(during=kill)
    assert checkpoints(running) == []


def test_qemu_killed_between_backups_makes_the_next_one_full(
    running: Guest, repository: Repository, folder: Path
) -> None:
    """Bitmaps that QEMU could not save are not trusted: both disks are read whole; afterwards it is incremental again."""
    repository.back_up()
    running.kill_qemu()
    running.start().wait_ready()
    running.shell("echo after >/mnt/vda/after-crash; sync")
    taken = repository.back_up()
    assert taken.incremental == {"vda": False, "vdb": False}
    assert "record of changes" in str(taken.reasons["vda"])
    assert len(checkpoints(running)) == 1
    assert "lab-backup" not in json.dumps(qmp(running, "query-block")).replace(checkpoints(running)[0], "")
    running.shell("echo later >/mnt/vda/later; sync")
    assert repository.back_up().incremental == {"vda": True, "vdb": True}
    exact(running, repository, folder)


def test_a_destroyed_guest_keeps_its_chain(running: Guest, repository: Repository, folder: Path) -> None:
    """Even pulling the plug saves the bitmaps, as QEMU ends in order: the next backup is incremental."""
    repository.back_up()
    running.shell("echo before >/mnt/vda/before-restart; sync")
    running.destroy()
    running.start().wait_ready()
    assert repository.back_up().incremental == {"vda": True, "vdb": True}
    exact(running, repository, folder)


def test_a_lost_bitmap_makes_only_its_own_disk_full(running: Guest, repository: Repository) -> None:
    """With checkpoint metadata but without the bitmap of one disk, that disk is read whole and the other one is not."""
    repository.back_up()
    (name,) = checkpoints(running)
    qmp(running, "block-dirty-bitmap-remove", node=first_node(running), name=name)
    taken = repository.back_up()
    assert sorted(taken.incremental.values()) == [False, True]
    assert name not in checkpoints(running)
    assert repository.back_up().incremental == {"vda": True, "vdb": True}


def test_lost_checkpoint_metadata_is_found_again(running: Guest, repository: Repository, folder: Path) -> None:
    """When libvirt has forgotten the checkpoint but the bitmaps are there, the chain goes on, exactly."""
    repository.back_up()
    running.domain.listAllCheckpoints(0)[0].delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    running.shell("echo found >/mnt/vda/found; sync")
    assert repository.back_up().incremental == {"vda": True, "vdb": True}
    exact(running, repository, folder)


def test_orphan_bitmaps_of_ours_go_and_others_stay(running: Guest, repository: Repository) -> None:
    """A bitmap of this repository that no checkpoint knows is removed at the next occasion; a foreign one is not."""
    repository.back_up()
    stale = f"lab-backup-{repository.id[:8]}-stale"
    for name in (stale, "foreign"):
        qmp(running, "block-dirty-bitmap-add", node=first_node(running), name=name)
    running.domain.listAllCheckpoints(0)[0].delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    repository.back_up()
    left = json.dumps(qmp(running, "query-block"))
    assert stale not in left
    assert '"foreign"' in left
    qmp(running, "block-dirty-bitmap-remove", node=first_node(running), name="foreign")


def test_a_new_disk_is_read_whole_and_a_removed_one_left_out(
    running: Guest, repository: Repository, folder: Path
) -> None:
    """A disk plugged in since is read whole beside incremental ones, and the next backup without it is incremental."""
    repository.back_up()
    path = folder / "c.qcow2"
    make_empty_disk(path, 8 * MiB, running.hypervisor.account)
    running.attach(DiskSpec(path, "vdc"))
    taken = repository.back_up()
    assert taken.incremental == {"vda": True, "vdb": True, "vdc": False}
    assert taken.reasons["vdc"] == "the disk is not in the previous backup"
    assert repository.back_up().incremental == {"vda": True, "vdb": True, "vdc": True}
    running.domain.detachDevice(f"<disk type='file'><source file='{path}'/><target dev='vdc' bus='virtio'/></disk>")
    wait_until(lambda: "vdc" not in running.domain.XMLDesc(0))
    assert repository.back_up().incremental == {"vda": True, "vdb": True}


def test_a_grown_disk_is_read_whole(running: Guest, repository: Repository) -> None:
    """A disk that grew while the VM ran is read whole: its bitmap does not know of the new end."""
    repository.back_up()
    running.domain.blockResize("vdb", 24 * MiB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    taken = repository.back_up()
    assert taken.incremental == {"vda": True, "vdb": False}
    assert taken.reasons["vdb"] == "the disk was resized from 16.0 MiB to 24.0 MiB"
    assert len(repository.disks["vdb"]) == 24 * MiB


def shut_down(guest: Guest) -> None:
    """Have the guest power off; go on as soon as QEMU has heard of it, long before libvirt is done with it."""
    guest.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
    wait_until(lambda: guest.domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING)


@pytest.mark.parametrize("end", [shut_down, Guest.kill_qemu])
def test_a_guest_that_ends_in_the_middle_fails_the_backup_clearly(
    running: Guest, repository: Repository, folder: Path, end: Callable[[Guest], None]
) -> None:
    """The error names the VM and what happened; no checkpoint, bitmap or file of the failed backup is left."""
    repository.back_up()
    before = checkpoints(running)
    with pytest.raises(LostBackupError, match="VM 'faults' stopped"):
        repository.back_up(during=lambda _source: end(running))
    assert checkpoints(running) == before
    ours = {name for name in in_image(folder / "a.qcow2") if belongs_to(name, repository.id)}
    assert ours <= set(before)
    running.start().wait_ready()
    assert repository.back_up().incremental["vda"] is (end is not Guest.kill_qemu)


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_libvirtd_restarting_in_the_middle_is_lived_through(
    running: Guest, repository: Repository, hypervisor: Hypervisor, folder: Path, *, kill: bool
) -> None:
    """The export goes on while libvirtd restarts; the backup commits, cleans up, and the next one is incremental."""
    repository.back_up()
    running.shell("echo restart >/mnt/vda/restart; sync")
    taken = repository.back_up(during=lambda _source: hypervisor.restart(kill=kill))
    assert taken.incremental["vda"]
    assert taken.warnings == []
    assert repository.back_up().incremental["vda"]
    exact(running, repository, folder)


def test_libvirtd_away_when_the_backup_is_killed(
    running: Guest, repository: Repository, hypervisor: Hypervisor
) -> None:
    """The guard waits for libvirtd to come back, and then cleans up."""
    with kill_backup_at(repository, "open") as child:
        hypervisor.stop(kill=True)
        child.kill()
        time.sleep(1)
        hypervisor.start()
        wait_until(lambda: traces(running, hypervisor.directory) == [], 30)
    assert running.domain.jobInfo()[0] == 0
    assert checkpoints(running) == []


def test_a_missing_agent_is_a_note(running: Guest, repository: Repository) -> None:
    """With no agent running the backup is crash-consistent, which is a note; with `require` it fails before it begins."""
    running.shell(
        "(sleep 0.3; agent=$(tr '\\0' ' ' </proc/$(cat /run/qemu-ga.pid)/cmdline); kill $(cat /run/qemu-ga.pid); sleep 4;"
        " $agent) >/dev/null 2>&1 &"
    )
    wait_until(lambda: "state='disconnected'" in running.domain.XMLDesc(0))
    taken = repository.back_up()
    assert (taken.consistency, taken.warnings) == (Consistency.CRASH, [])
    assert taken.notes == ["crash-consistent: no guest agent answers"]
    before = checkpoints(running)
    with pytest.raises(QuiesceError, match="no guest agent answers"):
        repository.back_up(quiesce=Quiesce.REQUIRE)
    assert checkpoints(running) == before
    running.wait_ready()


def test_a_hanging_agent_is_given_up_and_the_guest_thawed_later(running: Guest, repository: Repository) -> None:
    """An agent that does not answer costs a bounded time; when it wakes up and freezes after all, it is thawed."""
    running.shell(
        "(sleep 0.3; kill -STOP $(cat /run/qemu-ga.pid); sleep 9; kill -CONT $(cat /run/qemu-ga.pid)) >/dev/null 2>&1 &"
    )
    time.sleep(1)
    began = time.monotonic()
    taken = repository.back_up(limits=replace(LIMITS, freeze_timeout=2))
    assert time.monotonic() - began < 45
    assert taken.consistency is Consistency.CRASH
    assert any("could not be frozen" in warning for warning in taken.warnings)
    running.wait_ready()
    wait_until(lambda: not is_frozen(running), 30)


def test_a_guest_that_stays_frozen_too_long_is_thawed(
    running: Guest, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard thaws after its limit whatever the backup is doing, and the backup does not claim to be consistent."""
    begin = PullBackup._begin_job

    def slow(backup: PullBackup, *arguments: Any) -> None:
        wait_until(lambda: not is_frozen(running), 20)
        begin(backup, *arguments)

    monkeypatch.setattr(PullBackup, "_begin_job", slow)
    taken = repository.back_up(limits=replace(LIMITS, frozen=2))
    assert taken.consistency is Consistency.CRASH
    assert any("thawed its file systems before the backup" in warning for warning in taken.warnings)


def test_a_backup_that_makes_no_progress_is_ended(running: Guest, repository: Repository) -> None:
    """A backup that neither reads nor ends for as long as `stall` loses its job; the error says why."""

    def hang(_source: OpenSource) -> None:
        wait_until(lambda: running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, 20)

    with pytest.raises(LostBackupError, match="no progress for 2 s"):
        repository.back_up(during=hang, limits=replace(LIMITS, stall=2))


@pytest.fixture
def small_scratch(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a folder on a file system of 4 MiB."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir=hypervisor.directory))
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=4M,mode=777", "none", str(path)], check=True, timeout=10)
    yield path
    subprocess.run(["/bin/umount", "-l", str(path)], check=True, timeout=10)
    path.rmdir()


@pytest.mark.parametrize("reserve", [512 * KiB, 0], ids=["guard in time", "guard too late"])
def test_full_scratch_space_ends_the_backup_and_not_the_guest(
    running: Guest, repository: Repository, small_scratch: Path, folder: Path, reserve: int
) -> None:
    """When the scratch space runs out the guest goes on without an error, the backup fails, and the chain is intact."""
    running.shell("yes noise | head -c 16777216 >/mnt/vda/churn; sync")
    repository.back_up()
    before = checkpoints(running)

    def overwrite(_source: OpenSource) -> None:
        pause = "sleep 0.2" if reserve else "true"
        running.shell(
            "rm -f /run/done; (for i in $(seq 0 7); do dd if=/dev/zero of=/mnt/vda/churn bs=1M count=1 seek=$i"
            f" conv=notrunc; sync; {pause}; done; touch /run/done) >/dev/null 2>&1 &"
        )
        wait_until(lambda: running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, 30)

    with pytest.raises(LostBackupError, match=r"scratch space|space for scratch files"):
        repository.back_up(
            during=overwrite, scratch_directory=small_scratch, limits=replace(LIMITS, scratch_reserve=reserve)
        )
    wait_until(lambda: running.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
    running.shell("while [ ! -e /run/done ]; do sleep 0.1; done", 30)
    assert "error" not in running.shell("dmesg | grep -i vda || true").lower()
    assert checkpoints(running) == before
    assert repository.back_up().incremental["vda"]
    exact(running, repository, folder)


def test_too_little_scratch_space_is_refused_before_anything_begins(
    running: Guest, repository: Repository, small_scratch: Path
) -> None:
    """A scratch directory without room for the reserve is refused."""
    with pytest.raises(HypervisorError, match="too little space"):
        repository.back_up(scratch_directory=small_scratch)
    assert checkpoints(running) == []
