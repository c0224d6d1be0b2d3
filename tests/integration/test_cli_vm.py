"""The real program on a real VM: everything that a user does with one from the command line."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest
from lab_backup.units import MiB
from support.program import SECONDS, Program

pytestmark = pytest.mark.libvirt

SUMS = "cd /mnt/vda && find . -type f | sort | xargs sha256sum"
GuestFactory = Callable[..., Guest]


@pytest.fixture
def lab(hypervisor: Hypervisor, guest_directory: Path) -> Program:
    """Return the program with a new repository, and the private hypervisor as its libvirt."""
    program = Program(
        guest_directory,
        LAB_BACKUP_REPO=str(guest_directory / "repository"),
        LAB_BACKUP_PASSPHRASE="correct horse",
        LIBVIRT_DEFAULT_URI=hypervisor.uri,
    )
    program.ok("repo", "init")
    return program


def write_in(guest: Guest, mebibytes: int) -> None:
    """Write random data to the guest's file system."""
    guest.shell(f"dd if=/dev/urandom of=/mnt/vda/fresh bs=1M count={mebibytes} 2>/dev/null && sync")


def test_a_vm_is_backed_up_and_brought_back(lab: Program, guest: Guest, hypervisor: Hypervisor) -> None:
    """Full, dry run, incremental, list, checkpoints, restore under a new name, boot: as the documentation shows it."""
    full = lab.ok("backup", "vm", "vm")
    assert (full["kind"], full["source"], full["source_kind"]) == ("full", "vm", "vm")
    assert full["consistency"] == "filesystem"
    write_in(guest, 3)
    sums = guest.shell(SUMS)
    planned = lab.ok("backup", "vm", "vm", "--dry-run")["disks"]
    assert [(disk["name"], disk["kind"], disk["reason"]) for disk in planned] == [("vda", "incremental", None)]
    assert 3 * MiB <= planned[0]["bytes_to_read"] <= 8 * MiB
    increment = lab.ok("backup", "vm", "vm")
    assert (increment["kind"], increment["parent"]) == ("incremental", full["backup"])
    assert 3 * MiB <= increment["bytes_read"] <= planned[0]["bytes_to_read"] * 2 + MiB
    assert [item["kind"] for item in lab.ok("list", "--source", "vm/vm")["backups"]] == ["full", "incremental"]
    (checkpoint,) = lab.ok("checkpoints", "list", "vm")["checkpoints"]
    assert checkpoint["backup"] == increment["backup"]
    restored = lab.ok("restore", "vm", "latest:vm/vm", "--name", "again", "--start")
    assert (restored["vm"], restored["started"], restored["warnings"]) == ("again", True, [])
    assert Guest(hypervisor, "again").wait_ready().shell(SUMS) == sums
    assert lab.ok("checkpoints", "remove", "vm", "--all")["removed"] == [checkpoint["name"]]
    (disk,) = lab.ok("backup", "vm", "vm")["disks"]
    assert (disk["kind"], disk["reason"] is not None) == ("full", True)


def test_what_a_backup_lacks_is_kept_with_it(
    lab: Program, guest_factory: GuestFactory, hypervisor: Hypervisor, guest_directory: Path
) -> None:
    """That no agent answered, and that a disk was left out, stands in the backup itself, not only on the screen."""
    disks = [DiskSpec(guest_directory / "a.qcow2"), DiskSpec(guest_directory / "b.raw", "vdb", "raw")]
    make_disk(disks[0].path, 16 * MiB, hypervisor.account)
    make_disk(disks[1].path, 16 * MiB, hypervisor.account, image_format="raw")
    guest = guest_factory("plain", disks, agent=False)
    shared = (
        guest.domain.XMLDesc(0)
        .replace('<target dev="vdb"', "<target dev='vdb'")
        .replace("<target dev='vdb'", "<shareable/><target dev='vdb'")
    )
    hypervisor.connection().defineXML(shared)
    guest.start()
    made = lab.ok("backup", "vm", "plain", "--scratch-directory", str(guest_directory))
    assert [disk["name"] for disk in made["disks"]] == ["vda"]
    assert made["warnings"] == []
    (kept,) = lab.ok("list")["backups"]
    assert kept["notes"] == made["notes"]
    assert any("vdb is not in the backup: it is shared" in note for note in kept["notes"])
    assert any("agent" in note for note in kept["notes"])


def test_mistakes_with_a_running_vm(lab: Program, guest: Guest, guest_directory: Path) -> None:
    """What exists, runs, is not there or fits twice has its own status, and the guest does not notice."""
    image = guest_directory / "vm.qcow2"
    lab.ok("backup", "vm", "vm")
    before = {path.name for path in guest_directory.iterdir()}
    cases = (
        (("backup", "vm", "mv"), 4, "VMs there: vm"),
        (("backup", "vm", "vm", "--disk", "vdz"), 4, "its disks: vda"),
        (("backup", "image", str(image)), 7, "in use by another process"),
        (("restore", "vm", "latest:vm/vm"), 8, "say --overwrite"),
        (("restore", "vm", "latest:vm/vm", "--overwrite"), 7, "shut it down first"),
        (("restore", "vm", "latest:vm/vm", "--name", "new", "--pool", "none"), 4, "no storage pool 'none'"),
        (("restore", "vm", "latest:vm/vm", "--name", "new", "--directory", "/none"), 2, "make it first"),
        (("restore", "image", "latest:vm/vm", "--to", "x", "--disk", "vdb"), 4, "its disks: vda"),
        (("checkpoints", "remove", "vm", "none"), 4, "has no checkpoint 'none'"),
    )
    for arguments, code, words in cases:
        ended = lab(*arguments, "--json")
        assert (ended.code, ended.object["error"]["code"]) == (code, code), ended
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
    assert {path.name for path in guest_directory.iterdir()} == before
    (guest_directory / "other.raw").write_bytes(b"x" * MiB)
    lab.ok("backup", "image", "other.raw", "--name", "vm")
    twice = lab("show", "latest:vm")
    assert twice.code == 2
    assert "latest:vm/" in twice.stderr
    assert "latest:image/" in twice.stderr
    assert guest.shell("cat /mnt/vda/hello") == "hello\n"


def test_a_killed_backup_lets_the_guest_go_on(
    lab: Program, guest_factory: GuestFactory, hypervisor: Hypervisor, guest_directory: Path
) -> None:
    """SIGTERM in the middle: status 130, no checkpoint, no file, no backup; and the next one succeeds."""
    other = {"LAB_BACKUP_REPO": str(guest_directory / "slow"), "LAB_BACKUP_PASSPHRASE": ""}
    slow = Program(guest_directory, **lab.environment | other)
    slow.ok("repo", "init", "--no-encryption", "--compression", "zstd:15")
    content = guest_directory / "content"
    content.mkdir()
    (content / "digits").write_text(os.urandom(12 * MiB).hex())  # takes long to compress
    disk = DiskSpec(guest_directory / "vm.qcow2")
    make_disk(disk.path, 64 * MiB, hypervisor.account, content=content)
    guest = guest_factory(disks=[disk]).start().wait_ready()
    with slow.start("backup", "vm", "vm", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"backing up")
        time.sleep(0.3)  # in the middle of it
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert slow.ok("checkpoints", "list", "vm")["checkpoints"] == []
    assert slow.ok("list")["backups"] == []
    assert guest.shell("wc -c </mnt/vda/digits") == f"{24 * MiB}\n"
    made = slow.ok("backup", "vm", "vm")
    assert (made["kind"], made["warnings"]) == ("full", [])
    assert made["bytes_read"] > 24 * MiB
