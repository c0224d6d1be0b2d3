"""Holding real containers still, and freeing them whatever happens to whoever holds them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab_backup.demo.podman_service import PodmanService
from lab_backup.errors import UsageError
from lab_backup.sources.podman.claim import PREFIX
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import CommandFailedError
from lab_backup.sources.podman.freeze import Freeze, Hold, Hooks, Target
from support.podman_box import Box, container
from support.waiting import wait_until

ID = "1" * 32


@pytest.fixture
def podman(podman_service: PodmanService) -> Iterator[Podman]:
    """Return a connection to the private service."""
    with Podman(podman_service.uri) as connection:
        yield connection


@pytest.fixture
def box(podman_service: PodmanService) -> Iterator[Box]:
    """Return a running container with a volume."""
    with container(podman_service) as made:
        yield made


def _target(box: Box, podman: Podman) -> Target:
    return Target(box.inspect(podman)["Id"], box.name)


def _claimed(box: Box, podman: Podman) -> bool:
    return podman.exists(f"volumes/{PREFIX}{box.inspect(podman)['Id'][:32]}")


@pytest.mark.parametrize(("hold", "inside"), [(Hold.PAUSE, "paused"), (Hold.STOP, "exited"), (Hold.LIVE, "running")])
def test_held_and_freed(podman: Podman, box: Box, hold: Hold, inside: str) -> None:
    """A container is held as asked, runs again afterwards, with both commands run and no claim left."""
    hooks = Hooks(before="echo before >> /data/log", after="echo after >> /data/log", timeout=30)
    with Freeze(podman, [_target(box, podman)], backup=ID, hold=hold, hooks=hooks) as freeze:
        assert _claimed(box, podman)
        freeze.prepare()
        with freeze.held():
            assert box.state(podman) == inside
        assert box.state(podman) == "running"
        assert (freeze.held_seconds is None) == (hold is Hold.LIVE)
        assert not freeze.expired
    assert box.sh("cat /data/log") == "before\nafter\n"
    assert not _claimed(box, podman)
    assert freeze.warnings == []


def _fail_inside(freeze: Freeze) -> None:
    with freeze:
        freeze.prepare()
        with freeze.held():
            raise RuntimeError


def test_freed_after_a_failure(podman: Podman, box: Box) -> None:
    """A backup that fails while it holds a container frees it, and runs the command after."""
    freeze = Freeze(podman, [_target(box, podman)], backup=ID, hooks=Hooks(after="echo after > /data/log"))
    with pytest.raises(RuntimeError):
        _fail_inside(freeze)
    assert box.sh("cat /data/log") == "after\n"
    assert not _claimed(box, podman)


def test_command_before_fails(podman: Podman, box: Box) -> None:
    """A command before that fails ends the backup before anything is held; the one after is run all the same."""
    hooks = Hooks(before="exit 9", after="echo after > /data/log")
    freeze = Freeze(podman, [_target(box, podman)], backup=ID, hooks=hooks)
    with pytest.raises(CommandFailedError, match="status 9"):
        _fail_inside(freeze)
    assert box.sh("cat /data/log") == "after\n"


def test_pause_is_bounded(podman: Podman, box: Box) -> None:
    """A pause that takes longer than its limit is ended by the guard, and the backup learns of it."""
    with (
        Freeze(podman, [_target(box, podman)], backup=ID, pause_limit=0.2) as freeze,
        freeze.held(),
    ):
        wait_until(lambda: box.state(podman) == "running")
    assert freeze.expired


def test_stop_would_remove(podman: Podman) -> None:
    """A container that vanishes when it stops is not stopped."""
    with pytest.raises(UsageError, match="--rm"):
        Freeze(podman, [Target("0" * 64, "web", vanishes=True)], backup=ID, hold=Hold.STOP)


_HOLDER = """
import sys, time
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.freeze import Freeze, Hold, Hooks, Target
uri, identity, hold = sys.argv[1:]
with Podman(uri) as podman:
    hooks = Hooks(after="echo after > /data/log", timeout=30)
    with Freeze(podman, [Target(identity, "web")], backup="1" * 32, hold=Hold(hold), hooks=hooks, pause_limit=300) as freeze:
        freeze.prepare()
        with freeze.held():
            print("held", flush=True)
            time.sleep(300)
"""


@pytest.mark.parametrize("hold", ["pause", "stop"])
def test_killed_while_holding(podman: Podman, podman_service: PodmanService, box: Box, hold: str) -> None:
    """When the backup is killed by SIGKILL the container runs again, its command was run and its claim is gone."""
    identity = box.inspect(podman)["Id"]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, podman_service.uri, identity, hold], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert box.state(podman) != "running"
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: box.state(podman) == "running" and not _claimed(box, podman))
    assert box.sh("cat /data/log") == "after\n"
