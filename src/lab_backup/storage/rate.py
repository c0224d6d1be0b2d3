"""How many bytes a second may pass: one limit that any number of threads and storages share, and that may change while they run."""

import threading
import time
from collections.abc import Callable

_LOOK = 1.0  # seconds: how soon a change of the rate is felt by those who wait
_NOTHING = 1e-9  # seconds that no clock tells apart


class RateLimit:
    """At most `rate` bytes a second on average, None for no limit. Thread-safe.

    A line of bytes: each request takes its place behind all that came before, and waits until the line has moved past its end. So however
    many threads ask, together they stay below the rate, and none starves. Another rate moves the whole line faster or slower from then on.
    What was not used for longer than `burst` seconds is lost.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        follow: Callable[[], int | None] | None = None,
        burst: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with `rate` bytes a second. `follow`, where given, is asked for the rate every second. `sleep` waits for that many seconds."""
        self._lock = threading.Lock()
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._follow = follow
        self._rate = _checked(rate)
        self._taken = 0.0  # where the line ends, in bytes from its first
        self._passed = 0.0 if rate is None else burst * rate  # how far it has moved, at the time `_at`
        self._at = self._asked = clock()

    @property
    def rate(self) -> int | None:
        """Bytes a second now."""
        return self._rate

    @rate.setter
    def rate(self, value: int | None) -> None:
        with self._lock:
            self._move()
            self._rate = _checked(value)

    def wait(self, count: int) -> None:
        """Take a place for `count` bytes and return when they may have passed."""
        with self._lock:
            self._move()
            self._taken += count
            end = self._taken
        while (delay := self._delay(end)) > _NOTHING:
            self._sleep(min(delay, _LOOK))

    def _delay(self, end: float) -> float:
        with self._lock:
            self._move()
            due = self._follow is not None and self._at - self._asked >= _LOOK
            if due:
                self._asked = self._at  # one of those who wait asks, and nobody waits for the answer
        if due and self._follow is not None:
            self.rate = self._follow()
        with self._lock:
            self._move()
            return 0.0 if self._rate is None else (end - self._passed) / self._rate

    def _move(self) -> None:
        now = self._clock()
        if self._rate is None:
            self._passed = self._taken
        else:
            self._passed += (now - self._at) * self._rate
            self._passed = min(self._passed, self._taken + self._burst * self._rate)
        self._at = now


def _checked(rate: int | None) -> int | None:
    if rate is not None and rate <= 0:
        raise ValueError("a limit must be above zero")
    return rate
