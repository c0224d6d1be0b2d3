"""The guard: a process of its own that frees the guest when the backup dies, however it dies.

`python -m lab_backup.sources.libvirt.guard NAME` (the name is for whoever looks at the process list) reads one JSON object per line (`Report`) on standard input: what the
backup has put on the hypervisor so far. It answers `{}` when it is connected and watches. From then on it

- cleans up when its input ends, or the process that started it does, without a report that says `finished`;
- cleans up when no line came for `stall` seconds: the backup hangs;
- thaws a guest that stays frozen for longer than `freeze_limit` seconds;
- ends the backup when the space for scratch files runs out, before the guest meets an error, and when the guest was
  stopped by one resumes it;
- renews the backup's claim on the VM.

What it does without being told it says on standard output, one JSON object per line, and in the system's log.
"""

import os
import select
import signal
import sys
import syslog
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import libvirt
import msgspec

from lab_backup.errors import LabBackupError
from lab_backup.sources.libvirt import ownership, quiesce
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.leftovers import Leftovers, clean_up, release

TICK = 1.0
"""Seconds between two looks at guest and scratch space."""

GIVE_UP = 900.0
"""Seconds for which cleaning up is tried again: a restart of libvirtd is over by then, and so is a hanging agent."""


class Report(msgspec.Struct, frozen=True):
    """What the backup tells its guard. `watched` are local directories in which scratch files grow.

    `scratch_reserve` is in bytes, the times in seconds.
    """

    left: Leftovers
    parent: int
    stall: float
    freeze_limit: float
    scratch_reserve: int
    watched: tuple[str, ...] = ()
    finished: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What the guard tells the backup: an `error` that made it give up, or that it has `ended` the backup, and why."""

    error: str | None = None
    ended: str | None = None


class Guard:
    """The watch over one backup."""

    def __init__(self, first: Report, hypervisor: Hypervisor) -> None:
        """Watch over the backup that sent `first`."""
        self._report = first
        self._hypervisor = hypervisor
        self._heard = time.monotonic()
        self._renewed = self._heard
        self._frozen_since: float | None = None

    def hear(self, line: bytes) -> None:
        """Take a line of the backup; an empty one only says that it is alive."""
        self._heard = time.monotonic()
        if line.strip():
            self._report = msgspec.json.decode(line, type=Report)
        if not self._report.left.frozen:
            self._frozen_since = None
        elif self._frozen_since is None:
            self._frozen_since = self._heard

    @property
    def finished(self) -> bool:
        """Whether the backup said that nothing is left."""
        return self._report.finished

    def look(self) -> str | None:
        """Do what is due; return why the backup must end now, or None."""
        now = time.monotonic()
        if now - self._heard > self._report.stall:
            return f"the backup made no progress for {self._report.stall:.0f} s"
        if self._frozen_since is not None and now - self._frozen_since > self._report.freeze_limit:
            self._frozen_since = now  # once more after the same time, should this fail
            self._thaw()
        if self._report.left.job or self._report.left.overlays:
            if now - self._renewed > ownership.RENEWAL:
                self._renewed = now
                self._renew()
            return self._scratch_trouble()
        return None

    def end(self) -> None:
        """Clean up, trying again until everything is gone or GIVE_UP seconds are over."""
        left, deadline, pause = self._report.left, time.monotonic() + GIVE_UP, 0.5
        while True:
            left, problems = clean_up(self._hypervisor, left)
            if not problems and self._report.left.resume:  # a guest may stop a moment after what stopped it is gone
                time.sleep(TICK)
                left, problems = clean_up(self._hypervisor, left.replace(resume=True))
            if not problems:
                with suppress(LabBackupError):
                    release(self._hypervisor, left)
                return
            for problem in problems:
                syslog.syslog(syslog.LOG_WARNING, f"VM {left.uuid}: {problem}")
            if time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(pause * 2, 10.0)

    def _domain(self) -> Any:
        return self._hypervisor.domain(self._report.left.uuid)

    def _thaw(self) -> None:
        with suppress(LabBackupError, libvirt.libvirtError, TimeoutError):
            quiesce.thaw(self._domain())

    def _renew(self) -> None:
        with suppress(LabBackupError, libvirt.libvirtError):
            domain = self._domain()
            owner = ownership.read(domain)
            if owner is not None and owner.token == self._report.left.token:
                ownership.write(domain, owner.renewed(datetime.now(UTC)))

    def _scratch_trouble(self) -> str | None:
        for directory in self._report.watched:
            with suppress(OSError):
                space = os.statvfs(directory)
                if space.f_bavail * space.f_frsize < self._report.scratch_reserve:
                    return f"the space for scratch files in {directory} ran out"
        with suppress(LabBackupError, libvirt.libvirtError):
            state, reason = self._domain().state()
            if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
                return "the guest was stopped by an input/output error, as if the scratch space were full"
        return None


def _lines(parent: int) -> Iterator[bytes | None]:
    """Yield the lines of standard input, None every TICK seconds, and end with the input or with process `parent`."""
    watched = [0]
    with suppress(OSError):
        watched.append(os.pidfd_open(parent))
    if os.getppid() != parent:
        return
    buffer = b""
    while True:
        ready, _, _ = select.select(watched, [], [], TICK)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            yield from lines
        elif ready:
            return
        yield None


def _say(answer: Answer) -> None:
    with suppress(OSError):
        os.write(1, msgspec.json.encode(answer) + b"\n")


def _read_first() -> Report:
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            raise EOFError
        data += part
    return msgspec.json.decode(data, type=Report)


def main() -> int:
    """Watch until the backup is finished or must be ended. Returns the process's exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # meant for the backup; the guard follows it, but after the work is done
    syslog.openlog("lab-backup-guard", syslog.LOG_PID, syslog.LOG_DAEMON)
    try:
        first = _read_first()
    except EOFError:
        return 0
    try:
        hypervisor = Hypervisor(first.left.uri)
    except LabBackupError as error:
        _say(Answer(error=str(error)))
        return 1
    guard = Guard(first, hypervisor)
    _say(Answer())
    reason = "the backup process ended"
    for line in _lines(first.parent):
        if line is not None:
            guard.hear(line)
            if guard.finished:
                return 0
        elif (trouble := guard.look()) is not None:
            reason = trouble
            _say(Answer(ended=reason))
            break
    syslog.syslog(syslog.LOG_WARNING, f"VM {first.left.uuid}: {reason}; cleaning up")
    guard.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
