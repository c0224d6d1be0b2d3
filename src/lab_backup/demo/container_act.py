"""The demo's second act: a real container with a volume that is written to, backed up, removed with all that belongs to it, and brought back."""

import os
import secrets
import shutil
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from lab_backup.demo.command_line import CommandLine
from lab_backup.demo.content import copy_files, let_settle
from lab_backup.demo.errors import DemoError
from lab_backup.demo.podman_service import IMAGE, PodmanService
from lab_backup.demo.service_act import has_database, play_service
from lab_backup.demo.stage import Stage
from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman.connection import Podman
from lab_backup.units import MiB, format_size

NAME = "demo-web"
VOLUME = "demo-data"
NETWORK = "demo-net"
ADDRESS = "10.89.77.5"
CONTENT_SIZE = 40 * MiB
_IDLE = ("sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")
# Ten times a second a file is replaced.
_WRITER = (
    "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i > /data/one.new; mv /data/one.new /data/one; sleep 0.1; done"
)
_ODD = """
mkdir /data/odd; cd /data/odd
echo 'owned by ids that no host has' > owner; chown 1234:70000 owner; chmod 6711 owner
ln owner hard-link; ln -s ../nowhere symlink; mkfifo fifo; truncate -s 100M sparse
touch -d '2001-02-03 04:05:06' old; mkdir -p deep/er; chmod 1777 deep
echo changed > /etc/added; rm /etc/passwd
"""


def play_container(stage: Stage) -> None:
    """Play it on `stage`. Raises DemoError where anything is not as it was promised; leaves nothing."""
    if os.geteuid() != 0:
        stage.say("The second act, a container, needs root: sudo lab-backup demo")
        return
    if shutil.which("podman") is None:
        stage.say("The second act, a container, needs Podman: install podman")
        return
    with ExitStack() as stack:
        with stage.step("Starting a Podman service of its own, with an image of busybox"):
            service = stack.enter_context(PodmanService())
        _play(stage, service)
        if has_database():
            play_service(stage, service)
        else:
            stage.say("The third act, the service, needs PostgreSQL: install postgresql")


def _play(stage: Stage, service: PodmanService) -> None:
    repository = service.directory / "repository"
    cli = CommandLine(
        {
            "LAB_BACKUP_REPO": str(repository),
            "LAB_BACKUP_PASSPHRASE": secrets.token_urlsafe(),
            "CONTAINER_HOST": service.uri,
            "XDG_CACHE_HOME": str(service.directory / "cli-cache"),
        }
    )
    with stage.step("Running a container with a volume, a fixed address, and something that writes all the time"):
        _run(stage, service)
    with stage.step("Full backup of the container, while it writes"):
        stage.command(cli, "repo", "init", str(repository))
        full = stage.timed(cli, "container, full", "backup", "container", NAME)
        _tell(stage, full, "full")
    with stage.step("Changing two files, removing one; incremental backup, while it still writes"):
        service.run("exec", NAME, "sh", "-c", "echo more >> /data/odd/old; echo new > /data/new; rm /data/odd/symlink")
        increment = stage.timed(cli, "container, incremental", "backup", "container", NAME)
        _tell(stage, increment, "incremental")
        if increment["bytes_read"] > full["bytes_read"] / 10:
            raise DemoError(f"{format_size(increment['bytes_read'])} were read for a few bytes of changes")
    with stage.step("One more when it is quiet; then the container, its volume, its network and its image are removed"):
        service.run("exec", NAME, "touch", "/tmp/stop")  # noqa: S108  in the container
        service.run("pause", NAME)
        before = service.directory / "before"
        service.run_program("cp", "-a", str(_volume(service)), str(before))
        service.run("unpause", NAME)
        stage.command(cli, "backup", "container", NAME)
        for command in (
            ("rm", "-f", "-t", "0", NAME),
            ("volume", "rm", VOLUME),
            ("network", "rm", NETWORK),
            ("rmi", "-f", IMAGE),
        ):
            service.run(*command)
    with stage.step("Restoring it, and starting it"):
        restored = stage.timed(cli, "container, restore", "restore", "container", f"latest:container/{NAME}", "--start")
        if restored["differences"]:
            raise DemoError(f"not as it was: {', '.join(restored['differences'][:5])}")
        stage.say("proof: command, environment, network, address, mounts and limits are as they were")
    with stage.step("Comparing every file, owner, mode, time, attribute and link"):
        _compare(stage, service, before)


def _run(stage: Stage, service: PodmanService) -> None:
    service.run("network", "create", "--subnet", "10.89.77.0/24", NETWORK)
    service.run("volume", "create", "--label", "of=demo", VOLUME)
    options = ["--network", f"{NETWORK}:ip={ADDRESS}", "-v", f"{VOLUME}:/data", "-e", "COLOUR=blue", "--memory", "256m"]
    service.run("run", "-d", "--name", NAME, *options, IMAGE, *_IDLE)
    count, size = copy_files(_volume(service), CONTENT_SIZE)
    service.run("exec", NAME, "sh", "-c", _ODD)
    os.setxattr(_volume(service) / "odd/old", "user.colour", b"blue")
    service.run("exec", "-d", NAME, "sh", "-c", _WRITER)
    let_settle()
    stage.say(f"{count} files of this machine, {format_size(size)}, and odd ones")


def _volume(service: PodmanService) -> Path:
    with Podman(service.uri) as podman:
        return Path(str(podman.get(f"volumes/{VOLUME}/json")["Mountpoint"]))


def _tell(stage: Stage, made: dict[str, Any], kind: str) -> None:
    if made["kind"] != kind or made["consistency"] != "crash":
        raise DemoError(f"the {kind} backup turned out {made['kind']} and {made['consistency']}")
    stage.say("; ".join([f"{made['consistency']}-consistent", *made["notes"]]))


def _compare(stage: Stage, service: PodmanService, before: Path) -> None:
    with LocalFileTree(before) as old, LocalFileTree(_volume(service)) as new:
        found = [str(difference) for difference in islice(differences(old, new), 5)]
        if found:
            raise DemoError(f"files differ after the restore: {', '.join(found)}")
        names = sum(1 for _ in old.records())
    seen = service.run("exec", NAME, "sh", "-c", "cat /etc/added; ls /etc/passwd; echo $COLOUR", check=False).stdout
    if seen != b"changed\nblue\n":
        raise DemoError("the container's own files are not as they were")
    stage.say(f"proof: {names} names in the volume are equal in everything; so are the container's own files")
