"""The processes of the service: started in order, watched, and ended in order."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab_backup.errors import LabBackupError

ENDING = 60.0  # seconds for a worker to let its jobs clean up
SOONEST = 2.0  # seconds between two starts of a process that does not stay


@dataclass(slots=True)
class Child:
    """A process of ours. `again` starts it once more where it ended by itself; None where nothing works without it."""

    name: str
    process: subprocess.Popen[bytes]
    end: signal.Signals
    again: Callable[[], subprocess.Popen[bytes]] | None = None
    started: float = field(default_factory=time.monotonic)


def start_program(
    name: str, arguments: list[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start `lab-backup` with these arguments. It ends with this process, however that ends."""
    with log.joinpath(f"{name}.log").open("ab") as file:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", "--", sys.executable, "-m", "lab_backup", *arguments],  # noqa: S607  of util-linux, wherever it is
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
        )


class Tree:
    """All children, in the order in which they were started."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def add(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        *,
        end: signal.Signals = signal.SIGTERM,
        again: Callable[[], subprocess.Popen[bytes]] | None = None,
    ) -> None:
        """Watch a process."""
        self._children.append(Child(name, process, end, again))

    def watch(self) -> list[str]:
        """Start again what ended, and return the names. Raises LabBackupError where a server is gone that all others need."""
        restarted = []
        for child in self._children:
            if child.process.poll() is None:
                continue
            if child.again is None:
                raise LabBackupError(
                    f"the service's {child.name} has ended by itself", hint="its log in the data directory says why"
                )
            if time.monotonic() - child.started < SOONEST:
                continue
            child.process, child.started = child.again(), time.monotonic()
            restarted.append(child.name)
        return restarted

    def stop(self) -> None:
        """End all, the newest first; who does not end in time is killed."""
        while self._children:
            child = self._children.pop()
            if child.process.poll() is None:
                child.process.send_signal(child.end)
                try:
                    child.process.wait(ENDING)
                except subprocess.TimeoutExpired:
                    with suppress(ProcessLookupError):
                        os.killpg(child.process.pid, signal.SIGKILL)
                    child.process.wait(ENDING)
