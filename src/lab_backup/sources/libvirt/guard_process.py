"""The backup's end of the pipe to its guard."""

import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from lab_backup.sources.libvirt.errors import HypervisorError
from lab_backup.sources.libvirt.guard import Answer, Report
from lab_backup.sources.libvirt.leftovers import Leftovers
from lab_backup.sources.libvirt.quiesce import FREEZE_TIMEOUT
from lab_backup.units import MiB

START_TIMEOUT = 60.0
"""Seconds for the guard to be connected; libvirt may be busy."""

STOP_TIMEOUT = 40.0
"""Seconds for the guard to end once it knows that nothing is left; a call to libvirt may be under way."""

ALIVE_INTERVAL = 5.0
"""Seconds between two signs of life: they cost a system call each."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the backup waits, and when its guard acts by itself. Times in seconds, `scratch_reserve` in bytes.

    `freeze_timeout` is for the guest to flush and freeze; `frozen` is how long it may then stay so. `stall` must outlast
    the retries of a storage that is away for a while. The reserve is what a fast guest can write between two looks.
    """

    freeze_timeout: float = FREEZE_TIMEOUT
    frozen: float = 60.0
    stall: float = 3600.0
    scratch_reserve: int = 256 * MiB


class GuardProcess:
    """A guard, at first waiting to be told what to watch over. Thread-safe."""

    def __init__(self, name: str) -> None:
        """Start the process, which takes a moment to get ready; `name` is for whoever looks at the process list."""
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._said = time.monotonic()
        self._heard = b""
        self._ended: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lab_backup.sources.libvirt.guard", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, left: Leftovers, limits: Limits) -> None:
        """Let it watch over a backup that has left nothing yet; returns when it does. Raises HypervisorError if it cannot."""
        self._report = Report(
            left=left,
            parent=os.getpid(),
            stall=limits.stall,
            freeze_limit=limits.frozen,
            scratch_reserve=limits.scratch_reserve,
        )
        with self._lock:
            self._send(self._report)
            answer = self._answer(START_TIMEOUT)
        if answer is None or answer.error is not None:
            raise HypervisorError(
                f"the guard process cannot watch over the backup: {answer.error if answer else 'it does not answer'}",
                hint="nothing was begun; the guard needs a connection to libvirt of its own",
            )

    @property
    def left(self) -> Leftovers:
        """What the guard would take back now."""
        return self._current.left

    @property
    def watches(self) -> bool:
        """Whether it was told to watch over a backup."""
        return self._report is not None

    @property
    def _current(self) -> Report:
        if self._report is None:
            raise RuntimeError("the guard watches over nothing yet")
        return self._report

    def update(self, left: Leftovers, *, watched: tuple[str, ...] | None = None) -> None:
        """Tell the guard what is there from now on: *before* it is made, and *after* it is gone."""
        report = msgspec.structs.replace(self._current, left=left)
        if watched is not None:
            report = msgspec.structs.replace(report, watched=watched)
        with self._lock:
            self._report = report
            self._send(report)

    def alive(self) -> None:
        """Say that the backup makes progress; cheap enough for every read."""
        now = time.monotonic()
        if now - self._said < ALIVE_INTERVAL:
            return
        with self._lock:
            self._said = now
            with suppress(OSError):
                self._write(b"\n")

    def trouble(self) -> str | None:
        """Return why the guard has ended the backup, or that it is gone itself; None while it watches."""
        with self._lock:
            while (answer := self._answer(0)) is not None:
                self._ended = answer.ended or self._ended
            if self._ended is None and self._process.poll() is not None:
                self._ended = "the guard process is gone"
            return self._ended

    def finish(self) -> None:
        """Tell the guard that nothing is left, and wait for it to end. May be called several times."""
        with self._lock, suppress(HypervisorError):
            if self._report is not None:
                self._send(msgspec.structs.replace(self._report, finished=True))
        self._leave()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._kill()

    def hand_over(self) -> None:
        """Leave the rest to the guard, which goes on alone; it is only collected when it ends."""
        self._leave()
        threading.Thread(target=self._process.wait, name="guard-collector", daemon=True).start()

    def _leave(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._leave()

    def _send(self, report: Report) -> None:
        try:
            self._write(msgspec.json.encode(report) + b"\n")
        except OSError as error:
            raise HypervisorError("the guard process that watches over the backup is gone") from error

    def _write(self, data: bytes) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            raise BrokenPipeError
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def _answer(self, seconds: float) -> Answer | None:
        pipe = self._process.stdout
        if pipe is None or pipe.closed:
            return None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(pipe.fileno(), 65536) if ready else b""
            if not part:
                return None
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        return msgspec.json.decode(line, type=Answer)
