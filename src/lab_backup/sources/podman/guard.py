"""The guard: a process of its own that frees the containers when the backup dies, however it dies.

`python -m lab_backup.sources.podman.guard NAME` (the name is for whoever looks at the process list) reads one JSON object
per line (`Report`) on standard input: what the backup has changed on the host so far. It answers `{}` when it is connected
and watches. From then on it

- unpauses, starts, runs the post command and gives the claims back when its input ends, or the process that started it
  does, without a report that says `finished`;
- unpauses what stays paused for longer than `pause_limit` seconds, and says so.
"""

import os
import select
import signal
import sys
import syslog
import time
from contextlib import ExitStack, suppress

import msgspec

from lab_backup.errors import LabBackupError
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.leftovers import Leftovers, clean_up

GIVE_UP = 900.0
"""Seconds for which cleaning up is tried again; a restart of the service is over by then."""

IDLE = 60.0
"""Seconds between two looks while nothing is due."""

RETRY = 0.2
"""Seconds before what was due and failed is tried again."""


class Report(msgspec.Struct, frozen=True):
    """What the backup tells its guard; times in seconds."""

    left: Leftovers
    parent: int
    pause_limit: float
    finished: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What the guard tells the backup: an `error` that made it give up, or that the pause has `expired` and is over."""

    error: str | None = None
    expired: bool = False


class Guard:
    """The watch over one backup."""

    def __init__(self, first: Report, podman: Podman) -> None:
        """Watch over the backup that sent `first`."""
        self._report = first
        self._podman = podman
        self._paused_since: float | None = None

    def hear(self, line: bytes) -> None:
        """Take a report of the backup."""
        self._report = msgspec.json.decode(line, type=Report)
        if not self._report.left.paused:
            self._paused_since = None
        elif self._paused_since is None:
            self._paused_since = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether the backup said that nothing is left."""
        return self._report.finished

    @property
    def patience(self) -> float:
        """Seconds until something is due."""
        if self._paused_since is None:
            return IDLE
        return max(0.0, self._paused_since + self._report.pause_limit - time.monotonic())

    def look(self) -> None:
        """Unpause what has been paused for too long, and tell the backup."""
        if self._paused_since is None or self.patience > 0:
            return
        _say(Answer(expired=True))  # before it is true, so that a backup which sees no pause any more knows why
        due = Leftovers(uri=self._report.left.uri, paused=self._report.left.paused)
        remains, problems = clean_up(self._podman, due)
        if problems:
            _log(problems)
            time.sleep(RETRY)
            return
        self._paused_since = None
        left = msgspec.structs.replace(self._report.left, paused=remains.paused)
        self._report = msgspec.structs.replace(self._report, left=left)

    def end(self) -> None:
        """Clean up, trying again until everything is gone or GIVE_UP seconds are over."""
        left, deadline, pause = self._report.left, time.monotonic() + GIVE_UP, RETRY
        while True:
            left, problems = clean_up(self._podman, left)
            _log(problems)
            if left.nothing or time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(pause * 2, 10.0)


def _log(problems: list[str]) -> None:
    for problem in problems:
        syslog.syslog(syslog.LOG_WARNING, problem)


def _watch(guard: Guard, parent: int) -> None:
    """Return when the backup is finished or gone."""
    watched = [0]
    with suppress(OSError):
        watched.append(os.pidfd_open(parent))
    if os.getppid() != parent:
        return
    buffer = b""
    while not guard.finished:
        ready, _, _ = select.select(watched, [], [], guard.patience)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                guard.hear(line)
        elif ready:
            return
        guard.look()


def _say(answer: Answer) -> None:
    with suppress(OSError):
        os.write(1, msgspec.json.encode(answer) + b"\n")


def _read_first() -> Report | None:
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return None
        data += part
    return msgspec.json.decode(data, type=Report)


def main() -> int:
    """Watch until the backup is finished or gone. Returns the process's exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # meant for the backup; the guard follows it, but after the work is done
    syslog.openlog("lab-backup-guard", syslog.LOG_PID, syslog.LOG_DAEMON)
    first = _read_first()
    if first is None:
        return 0
    with ExitStack() as stack:
        try:
            podman = stack.enter_context(Podman(first.left.uri))
        except LabBackupError as error:
            _say(Answer(error=str(error)))
            return 1
        guard = Guard(first, podman)
        _say(Answer())
        _watch(guard, first.parent)
        if not guard.finished:
            guard.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
