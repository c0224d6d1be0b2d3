"""The machines that the other tests stand on are real ones, and behave as such."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab_backup.demo.accelerator import Accelerator, kernel_speaks
from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.errors import DemoError, GuestError
from lab_backup.demo.guest import GuestImage, build_guest
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.units import MiB

pytestmark = pytest.mark.libvirt


def test_a_guest_runs_commands_on_its_own_disk(shared_guest: Guest) -> None:
    """Commands run inside the guest, on the file system of the disk that was made for it."""
    assert shared_guest.shell("cat /mnt/vda/hello") == "hello\n"
    assert "ext4" in shared_guest.shell("grep /mnt/vda /proc/mounts")


def test_a_failing_command_tells_what_failed(shared_guest: Guest) -> None:
    """A command that fails in the guest is an error with its complaint."""
    with pytest.raises(GuestError, match="No such file"):
        shared_guest.shell("cat /mnt/vda/missing")


def test_the_file_systems_freeze_and_thaw_and_run_the_hooks(shared_guest: Guest) -> None:
    """The agent freezes the one disk, runs the freeze hooks around it, and thaws it again."""
    shared_guest.shell(
        "printf '#!/bin/sh\\necho $1 >>/run/hooks\\n' >/etc/qemu/fsfreeze-hook.d/log; chmod +x /etc/qemu/fsfreeze-hook.d/log"
    )
    assert shared_guest.domain.fsFreeze() == 1
    assert shared_guest.domain.fsThaw() == 1
    assert shared_guest.shell("cat /run/hooks").split() == ["freeze", "thaw"]
    shared_guest.shell("echo new >/mnt/vda/new; sync")


def test_trimmed_blocks_leave_the_image(shared_guest: Guest) -> None:
    """What the guest trims becomes a hole in its image file."""
    image = Path(shared_guest.domain.XMLDesc().partition("<source file='")[2].partition("'")[0])
    shared_guest.shell("dd if=/dev/urandom of=/mnt/vda/big bs=1M count=16 2>/dev/null; sync")
    filled = image.stat().st_blocks
    shared_guest.shell("rm /mnt/vda/big; sync; fstrim /mnt/vda")
    assert image.stat().st_blocks * 512 < filled * 512 - 12 * MiB


def test_a_disk_plugged_in_later_is_mounted(shared_guest: Guest, hypervisor: Hypervisor, guest_directory: Path) -> None:
    """A second disk that is attached to the running guest appears below /mnt, and goes with the disk."""
    disk = DiskSpec(guest_directory / "second.raw", "vdb", "raw")
    make_disk(disk.path, 16 * MiB, hypervisor.account, image_format="raw")
    shared_guest.attach(disk)
    shared_guest.shell("for i in $(seq 50); do [ -d /mnt/vdb/lost+found ] && exit; sleep 0.1; done; exit 1")
    shared_guest.detach(disk)
    shared_guest.shell("for i in $(seq 50); do [ -d /mnt/vdb ] || exit 0; sleep 0.1; done; exit 1")


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_new_daemon_finds_the_running_guest(shared_guest: Guest, hypervisor: Hypervisor, *, kill: bool) -> None:
    """The guest runs on while libvirtd ends and a new one takes over: it was not booted again."""
    shared_guest.shell("touch /run/was-here")
    hypervisor.restart(kill=kill)
    assert shared_guest.wait_ready().shell("ls /run/was-here")


def test_a_guest_whose_qemu_was_killed_boots_again(guest: Guest) -> None:
    """SIGKILL of QEMU leaves a domain that is off, with a disk that still works."""
    guest.kill_qemu()
    assert guest.exists
    assert not guest.running
    assert guest.start().wait_ready().shell("cat /mnt/vda/hello") == "hello\n"


def test_a_guest_shuts_down_by_itself_when_asked(guest: Guest) -> None:
    """A shutdown by the agent ends in a domain that is off, without a recovery of the file system at the next boot."""
    guest.shutdown()
    assert "recovery" not in guest.start().wait_ready().shell("dmesg | grep EXT4")


def test_a_guest_with_uefi_and_without_agent_gets_ready(
    guest_factory: Callable[..., Guest], hypervisor: Hypervisor
) -> None:
    """UEFI firmware with its own NVRAM boots, and readiness needs no agent."""
    guest_factory("efi", uefi=True, agent=False).start().wait_ready()
    assert (hypervisor.directory / "efi.nvram").stat().st_size > 0


def test_nothing_is_left_of_a_hypervisor_that_failed(guest_image: GuestImage) -> None:
    """After an exception neither the directory nor the daemon nor a running guest remains."""
    hypervisor = Hypervisor(guest_image, accelerator=Accelerator.TCG)
    seen: list[tuple[Path, int]] = []

    def start_and_fail() -> None:
        with hypervisor:
            define_guest(hypervisor, "left", []).start()
            seen.append((hypervisor.directory, hypervisor.qemu_pid("left") or 0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start_and_fail()
    directory, pid = seen[0]
    assert pid
    assert not directory.exists()
    cmdline = Path(f"/proc/{pid}/cmdline")
    assert not cmdline.exists() or not cmdline.read_bytes()  # empty: dead, and nobody has asked for its exit status yet


@pytest.mark.parametrize(("seconds", "expected"), [(60, True), (0.2, False)], ids=["in time", "too late"])
def test_an_accelerator_is_usable_where_a_kernel_speaks(
    hypervisor: Hypervisor, seconds: float, *, expected: bool
) -> None:
    """The probe hears a kernel that runs, and gives up on one that says nothing for the time it is given."""
    began = time.monotonic()
    heard = kernel_speaks(Accelerator.TCG, hypervisor.image, hypervisor.account, seconds=seconds)
    assert heard is expected
    assert time.monotonic() - began < seconds + 20


def test_the_cached_guest_is_reused(guest_image: GuestImage) -> None:
    """Building again returns the very files that are there."""
    before = guest_image.initrd.stat().st_mtime_ns
    again = build_guest(guest_image.initrd.parent.parent)
    assert again == guest_image
    assert again.initrd.stat().st_mtime_ns == before


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a tool is not installed, the error names it and says how to get it."""
    monkeypatch.setattr("lab_backup.demo.tool.SEARCH_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DemoError, match=r"mkfs\.ext4 is not installed") as caught:
        make_disk(tmp_path / "disk", MiB, account=None)  # type: ignore[arg-type] # never reached
    assert caught.value.hint is not None
