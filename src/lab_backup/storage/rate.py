"""How many bytes a second may pass: one limit that any number of threads and storages share, and that may change while they run."""

import threading
import time
from collections.abc import Callable


class RateLimit:
    """At most `rate` bytes a second on average, None for no limit. Thread-safe.

    A virtual line: each request books the time that its bytes take, behind all that was booked before, and waits until its turn. So however
    many threads ask, together they stay below the rate, and none starves. What was not used for longer than `burst` seconds is lost.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        burst: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with `rate` bytes a second. `sleep` waits for that many seconds."""
        self._lock = threading.Lock()
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock() - burst  # when the line is free for who comes next
        self._rate = _checked(rate)

    @property
    def rate(self) -> int | None:
        """Bytes a second now."""
        return self._rate

    @rate.setter
    def rate(self, value: int | None) -> None:
        with self._lock:
            self._rate = _checked(value)
            # What was booked at the old rate counts for no more than a burst: a higher limit helps at once.
            self._free_at = min(self._free_at, self._clock() + self._burst)

    def wait(self, count: int) -> None:
        """Book `count` bytes and return when it is their turn."""
        with self._lock:
            if self._rate is None:
                return
            now = self._clock()
            start = max(self._free_at, now - self._burst)
            self._free_at = start + count / self._rate
            delay = self._free_at - now
        if delay > 0:
            self._sleep(delay)


def _checked(rate: int | None) -> int | None:
    if rate is not None and rate <= 0:
        raise ValueError("a limit must be above zero")
    return rate
