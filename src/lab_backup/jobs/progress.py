"""How far a job is: kept by the job's own process, stored with its lease, and the way by which a request to stop reaches it."""

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from lab_backup.errors import CancelledError

SMOOTHED = 5.0  # seconds over which a rate is measured


class StopRequestedError(CancelledError):
    """The job was asked to stop; `how` is `cancel`, `interrupt` or `lost`."""

    def __init__(self, how: str) -> None:
        words = {
            "cancel": "cancelled on request",
            "interrupt": "the service was stopped",
            "lost": "the job's lease was lost",
        }
        super().__init__(words.get(how, how))
        self.how = how


class JobProgress:
    """Progress as operations tell it (operations.progress), from any thread."""

    def __init__(self, log: Callable[[str, str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write lines by `log` (level, text)."""
        self._log = log
        self._clock = clock
        self._lock = Lock()
        self._phase = ""
        self._total: int | None = None
        self._done = 0
        self._moved_at = clock()
        self._marks: list[tuple[float, int]] = [(clock(), 0)]
        self._stop: str | None = None
        self._held_until: float | None = None

    def start(self, total_bytes: int | None, what: str) -> None:
        """Begin a phase."""
        with self._lock:
            self._phase, self._total, self._done = what, total_bytes, 0
            self._moved_at = self._clock()
            self._marks = [(self._moved_at, 0)]
        self._log("info", what)
        self.check()

    def advance(self, count: int) -> None:
        """Count bytes. Raises StopRequestedError where the job was asked to stop."""
        with self._lock:
            self._done += count
            self._moved_at = self._clock()
        self.check()

    def note(self, text: str) -> None:
        """Keep a line in the job's log."""
        self._log("info", text)
        self.check()

    def check(self) -> None:
        """Raise StopRequestedError where the job was asked to stop, or its lease was not renewed in time."""
        if self._held_until is not None and self._clock() > self._held_until:
            self.stop("lost")
        if self._stop is not None:
            raise StopRequestedError(self._stop)

    def hold(self, seconds: float) -> None:
        """Let the job go on for so long from now, unless it is held again: who waits for a database that does not answer stops all the same."""
        self._held_until = self._clock() + seconds

    def stop(self, how: str) -> None:
        """Let the job stop at its next step."""
        self._stop = self._stop or how

    @property
    def idle_seconds(self) -> float:
        """Return for how long no byte has moved."""
        with self._lock:
            return self._clock() - self._moved_at

    def state(self) -> dict[str, Any]:
        """Return the phase, bytes done and in all (None: unknown), bytes a second, and seconds that are left (None: unknown)."""
        with self._lock:
            now = self._clock()
            self._marks = [mark for mark in self._marks if now - mark[0] <= SMOOTHED] or self._marks[-1:]
            since, before = self._marks[0]
            rate = (self._done - before) / (now - since) if now > since else 0.0
            self._marks.append((now, self._done))
            left = None
            if self._total and rate > 0:
                left = max(0.0, (self._total - self._done) / rate)
            return {
                "phase": self._phase,
                "done": self._done,
                "total": self._total,
                "rate": round(rate),
                "eta": None if left is None else round(left),
            }
