"""The demo: a real guest is backed up while it runs, changed, backed up again, destroyed, and brought back; then a container, and the service."""

import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console

from lab_backup.demo.accelerator import Accelerator
from lab_backup.demo.command_line import CommandLine
from lab_backup.demo.container_act import play_container
from lab_backup.demo.content import add_odd_files, change_files, copy_files, inventory
from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.errors import DemoError
from lab_backup.demo.guest import build_guest
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.demo.stage import Row, Stage
from lab_backup.units import GiB, MiB, format_duration, format_size

NAME = "demo"
RESTORED = "demo-restored"
DISK_SIZE = 4 * GiB
CONTENT_SIZE = 150 * MiB
_SPACE_NEEDED = 1 * GiB  # disk, repository, restored disk and scratch files
ACCELERATOR_VARIABLE = "LAB_BACKUP_DEMO_ACCEL"


def run_demo(console: Console) -> int:
    """Play the demo on `console`; return 0, or raise DemoError where anything is not as it was promised.

    Everything happens in one temporary directory and under a libvirt of its own. When this returns or raises, also by
    KeyboardInterrupt, no process, domain or file is left; only the guest's kernel stays in the user's cache.
    """
    accelerator = _wanted_accelerator()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _SPACE_NEEDED:
        raise DemoError(
            f"{tempfile.gettempdir()} has {format_size(free)} free, and the demo needs {format_size(_SPACE_NEEDED)}",
            hint="set TMPDIR to a folder with more space and a short path",
        )
    cache = platformdirs.user_cache_path("lab-backup") / "guest"
    began = time.monotonic()
    stage = Stage(console)
    with stage.step("Building a tiny guest from Debian's kernel, busybox and the QEMU guest agent"):
        image = build_guest(cache)
    with Hypervisor(image, accelerator=accelerator) as hypervisor:
        _play(stage, hypervisor)
    play_container(stage)
    stage.show_table()
    console.print(
        f"\nAll of it took {format_duration(time.monotonic() - began)}. Nothing of it is left.", highlight=False
    )
    _say_what_next(console)
    return 0


def _play(stage: Stage, hypervisor: Hypervisor) -> None:
    repository = hypervisor.directory / "repository"
    cli = CommandLine(
        {
            "LAB_BACKUP_REPO": str(repository),
            "LAB_BACKUP_PASSPHRASE": secrets.token_urlsafe(),
            "LIBVIRT_DEFAULT_URI": hypervisor.uri,
            "XDG_CACHE_HOME": str(hypervisor.directory / "cli-cache"),
        }
    )
    guest = _start_guest(stage, hypervisor)

    with stage.step("Full backup into a new encrypted repository, while the guest runs"):
        stage.command(cli, "repo", "init", str(repository))
        full = _back_up(stage, cli, guest, "full")

    with stage.step("Changing files in the guest: 4 MiB more, five blocks of 4 KiB, a line, an owner; one file less"):
        change_files(guest)
        before = _inventory(stage, guest)
        dirty = _dirty_bytes(guest)
        stage.say(
            f"QEMU itself counts {format_size(dirty)} of {format_size(DISK_SIZE)} as changed since the full backup"
        )

    with stage.step("Incremental backup"):
        increment = _back_up(stage, cli, guest, "incremental")
        _prove_that_only_changes_were_read(stage, full, increment, dirty)

    with stage.step("Destroying the guest, its definition and its disk"):
        disk = hypervisor.directory / f"{NAME}.qcow2"
        guest.remove()
        disk.unlink()

    restored = Guest(hypervisor, RESTORED)
    with stage.step(f"Restoring it as {RESTORED} and booting it"):
        target = hypervisor.directory / "restored"
        target.mkdir()
        hypervisor.account.own(target)
        made = stage.timed(cli, "restore", "restore", "vm", f"latest:vm/{NAME}",
            "--name", RESTORED, "--directory", str(target), "--start",
        )  # fmt: skip
        stage.say(
            f"wrote {format_size(made['bytes_written'])} of {format_size(made['bytes_total'])}, each chunk checked; "
            "the rest are holes again"
        )
        restored.wait_ready()

    with stage.step("Comparing every file from inside the restored guest"):
        _prove_that_nothing_changed(stage, before, _inventory(stage, restored))

    with stage.step("Verifying the repository down to every stored byte"):
        found = stage.timed(cli, "verify", "verify", "--read-data")
        if found["corrupt"] or found["missing"]:
            raise DemoError(f"verify found damage: {found['corrupt']} corrupt, {found['missing']} missing")
        stage.say(f"{found['checked']} parts checked, 0 corrupt, 0 missing")


def _start_guest(stage: Stage, hypervisor: Hypervisor) -> Guest:
    with stage.step(f"Filling a disk of {format_size(DISK_SIZE)} with real files of this machine"):
        disk = DiskSpec(hypervisor.directory / f"{NAME}.qcow2")
        with tempfile.TemporaryDirectory(dir=hypervisor.directory) as folder:
            count, size = copy_files(Path(folder), CONTENT_SIZE)
            make_disk(disk.path, DISK_SIZE, hypervisor.account, content=Path(folder))
        stage.say(f"{count} files, {format_size(size)}, ext4 in a thin qcow2 image")
    with stage.step("Booting it under a private, unprivileged libvirt"):
        kvm = hypervisor.accelerator is Accelerator.KVM
        stage.say("on this machine's KVM" if kvm else "by emulation (TCG), since KVM is not usable here")
        guest = define_guest(hypervisor, NAME, [disk]).start().wait_ready()
        add_odd_files(guest)
        # Proof that the guest works on during backups: it notes ten times a second that it is alive, in memory.
        guest.shell("(while sleep 0.1; do echo >>/run/heartbeat; done) >/dev/null 2>&1 &")
    return guest


def _back_up(stage: Stage, cli: CommandLine, guest: Guest, kind: str) -> dict[str, Any]:
    beats = _heartbeats(guest)
    began = time.monotonic()
    made = stage.command(cli, "backup", "vm", NAME)
    seconds = time.monotonic() - began
    if made["kind"] != kind:
        raise DemoError(f"the {kind} backup turned out {made['kind']}")
    stage.rows.append(Row(f"{kind} backup", seconds, made["bytes_read"], made["bytes_stored"]))
    stage.say(
        f"{made['consistency']}-consistent; read {format_size(made['bytes_read'])} of {format_size(made['bytes_total'])}, "
        f"stored {format_size(made['bytes_stored'])}; the guest's heart beat {_heartbeats(guest) - beats} times meanwhile"
    )
    return made


def _heartbeats(guest: Guest) -> int:
    return int(guest.shell("wc -c </run/heartbeat 2>/dev/null || echo 0"))


def _dirty_bytes(guest: Guest) -> int:
    """Return how much of the first disk QEMU's own bitmap calls changed: an opinion that is not ours."""
    nodes = guest.monitor("query-named-block-nodes", flat=True)
    checkpoints = {checkpoint.getName() for checkpoint in guest.domain.listAllCheckpoints()}
    counts = [
        bitmap["count"]
        for node in nodes
        for bitmap in node.get("dirty-bitmaps", ())
        if bitmap.get("name") in checkpoints
    ]
    if len(counts) != 1:
        raise DemoError(f"QEMU keeps {len(counts)} bitmaps for checkpoints of the guest, not one")
    return int(counts[0])


def _prove_that_only_changes_were_read(
    stage: Stage, full: dict[str, Any], increment: dict[str, Any], dirty: int
) -> None:
    read, stored = increment["bytes_read"], increment["bytes_stored"]
    # Blocks are counted in 64 KiB, chunks are 128 KiB: at worst every changed block is half a chunk. The allowance is for
    # the file system's journal, written when the guest is frozen, and for the sample of unchanged chunks that is checked.
    limit = 2 * dirty + 2 * MiB
    if read > limit or stored > read:
        raise DemoError(
            f"{format_size(read)} were read and {format_size(stored)} stored for {format_size(dirty)} of changes"
        )
    share = 100 * read / full["bytes_total"]
    stage.say(
        f"proof: {format_size(dirty)} changed, {format_size(read)} read ({share:.2f} % of the disk), "
        f"{format_size(stored)} stored; the full backup read {format_size(full['bytes_read'])}"
    )


def _inventory(stage: Stage, guest: Guest) -> list[str]:
    with stage.console.status(f"reading every file in {guest.name}"):
        return inventory(guest)


def _prove_that_nothing_changed(stage: Stage, before: list[str], after: list[str]) -> None:
    if before != after:
        differences = sorted(set(before) ^ set(after))
        raise DemoError(
            f"{len(differences)} lines about files differ after the restore, the first of them: {differences[0] if differences else 'order'}"
        )
    files = before.index("--")
    checksums = len(before) - 1 - before.index("--", files + 1)
    stage.say(
        f"proof: {files} files and folders have their owner, mode, size, links and time; {checksums} SHA-256 are equal"
    )


def _say_what_next(console: Console) -> None:
    console.print(
        "\nNow with your own machines:\n"
        "  lab-backup repo init /srv/backups\n"
        "  lab-backup backup vm NAME --repo /srv/backups           # the first is full, the next ones are incremental\n"
        "  lab-backup list --repo /srv/backups\n"
        "  lab-backup restore vm latest:vm/NAME --repo /srv/backups --name NEW --start\n"
        "  lab-backup backup container NAME --repo /srv/backups    # and so on: lab-backup --help\n"
        "  lab-backup up                                           # the service: API, schedules, workers",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _wanted_accelerator() -> Accelerator:
    wanted = os.environ.get(ACCELERATOR_VARIABLE, Accelerator.AUTO)
    try:
        return Accelerator(wanted)
    except ValueError as error:
        raise DemoError(f"{ACCELERATOR_VARIABLE} is {wanted!r}", hint="set it to auto, kvm or tcg") from error
