"""Limits: the average is kept whatever threads do, may change at any time, and calls at once are counted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.storage.limited import LimitedStorage
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.rate import RateLimit


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds > 0
        self.now += seconds


@given(rate=st.integers(10**7, 10**9), counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_the_average_is_kept(rate: int, counts: list[int]) -> None:
    """However the bytes are cut, they take as long as the rate says, but for the burst."""
    clock = Clock()
    limit = RateLimit(rate, burst=0.5, clock=clock, sleep=clock.sleep)
    for count in counts:
        limit.wait(count)
    needed = sum(counts) / rate
    assert needed - 0.5 - 1e-6 * needed <= clock.now - 100 <= needed + 1e-6 * (needed + 1)


@given(idle=st.floats(0, 1000), rate=st.integers(1, 10**6))
def test_idle_time_is_not_saved_up(idle: float, rate: int) -> None:
    """After a pause of any length no more than the burst goes through at once."""
    clock = Clock()
    limit = RateLimit(rate, burst=0.5, clock=clock, sleep=clock.sleep)
    clock.now += idle
    start = clock.now
    limit.wait(10 * rate)
    assert clock.now - start >= 9.5 - 1e-6


def test_changed_while_it_runs() -> None:
    """None lifts the limit; nothing below one byte a second is taken."""
    clock = Clock()
    limit = RateLimit(1000, burst=0, clock=clock, sleep=clock.sleep)
    limit.wait(1000)
    assert clock.now == pytest.approx(101)
    limit.rate = None
    limit.wait(10**12)
    assert clock.now == pytest.approx(101)
    assert limit.rate is None
    with pytest.raises(ValueError, match="above zero"):
        limit.rate = 0


def test_who_waits_already_feels_another_limit() -> None:
    """A thread that waits for its turn goes on at the new rate, also where there is none any more."""
    clock = Clock()
    limit = RateLimit(1, burst=0, clock=clock, sleep=clock.sleep)
    changes = {105.0: 1000, 106.0: None}

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now in changes:
            limit.rate = changes[clock.now]

    limit = RateLimit(1, burst=0, clock=clock, sleep=sleep)
    limit.wait(10**6)
    assert clock.now == 106.0


def test_the_rate_is_followed() -> None:
    """What `follow` says counts a second later at most, and it is not asked more often."""
    clock = Clock()
    asked: list[float] = []

    def follow() -> int | None:
        asked.append(clock.now)
        return 10 if clock.now < 110 else 1000

    limit = RateLimit(10, follow=follow, burst=0, clock=clock, sleep=clock.sleep)
    for _ in range(4):
        limit.wait(275)
    assert clock.now == pytest.approx(111, abs=1.1)
    assert min(later - before for before, later in pairwise(asked)) >= 1


def test_up_and_down_are_counted_apart() -> None:
    """Uploads wait for their bytes before, downloads after."""
    clock = Clock()
    up = RateLimit(100, burst=0, clock=clock, sleep=clock.sleep)
    down = RateLimit(10, burst=0, clock=clock, sleep=clock.sleep)
    store = LimitedStorage(MemoryStorage(), upload=up, download=down)
    store.upload("a", bytes(300))
    store.create("b", bytes(100))
    assert clock.now == pytest.approx(104)
    store.read("a", 0, 50)
    assert clock.now == pytest.approx(109)
    store.stat("a")
    store.delete("a")
    assert clock.now == pytest.approx(109)


def test_calls_at_once() -> None:
    """No more than so many calls are under way at the same time."""
    busy, most = 0, 0
    lock, arrived = threading.Lock(), threading.Semaphore(0)

    class Slow(MemoryStorage):
        def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            arrived.acquire(timeout=0.05)
            with lock:
                busy -= 1
            return super().read(path, offset, length)

    store = LimitedStorage(Slow(), calls=3)
    assert store.concurrency == 3
    store.upload("a", b"x")
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda _: store.read("a"), range(12))) == [b"x"] * 12
    assert most == 3
