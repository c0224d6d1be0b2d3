"""The backup's end of the pipe to its guard."""

import os
import select
import subprocess
import sys
import time
from contextlib import suppress

import msgspec

from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.guard import Answer, Report
from lab_backup.sources.podman.leftovers import Leftovers

START_TIMEOUT = 60.0
"""Seconds for the guard to be connected; SSH may take its time."""

STOP_TIMEOUT = 30.0
"""Seconds for the guard to end once it knows that nothing is left."""


class GuardProcess:
    """A guard that watches over a backup which has changed nothing yet. A context manager."""

    def __init__(self, name: str, left: Leftovers, *, pause_limit: float) -> None:
        """Start it, and return when it watches; `name` is for whoever looks at the process list. Raises PodmanError."""
        self.expired = False
        self._heard = b""
        self._report = Report(left=left, parent=os.getpid(), pause_limit=pause_limit)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lab_backup.sources.podman.guard", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._send()
            answer = self._answer(START_TIMEOUT)
            if answer is None or answer.error is not None:
                raise PodmanError(
                    f"the guard process cannot watch over the backup: {answer.error if answer else 'it does not answer'}",
                    hint="nothing was begun; the guard needs a connection to Podman of its own",
                )
        except BaseException:
            self._leave()
            self._process.kill()
            self._process.wait()
            raise

    @property
    def left(self) -> Leftovers:
        """What the guard would take back now."""
        return self._report.left

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def update(self, left: Leftovers) -> None:
        """Tell the guard what is there from now on: *before* it is made, and *after* it is gone. Raises PodmanError."""
        self._report = msgspec.structs.replace(self._report, left=left)
        self._send()

    def look(self) -> None:
        """Learn what the guard has said: `expired` says whether it ended a pause that took too long. Raises PodmanError."""
        while (answer := self._answer(0)) is not None:
            self.expired = self.expired or answer.expired
        if self._process.poll() is not None:
            raise PodmanError("the guard process that watches over the backup is gone", hint="run the backup again")

    def finish(self) -> None:
        """End the guard: at once where nothing is left; else it cleans up alone and is only waited for a while."""
        if self.left.nothing:
            with suppress(PodmanError):
                self._report = msgspec.structs.replace(self._report, finished=True)
                self._send()
        self._leave()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            if self.left.nothing:
                self._process.kill()
                self._process.wait()

    def _leave(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self) -> None:
        try:
            if self._process.stdin is None:
                raise BrokenPipeError
            view = memoryview(msgspec.json.encode(self._report) + b"\n")
            while view:
                view = view[self._process.stdin.write(view) :]
        except (OSError, ValueError) as error:
            raise PodmanError(
                "the guard process that watches over the backup is gone", hint="run the backup again"
            ) from error

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
