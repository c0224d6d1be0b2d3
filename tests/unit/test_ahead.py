"""What is read ahead: nothing twice, nothing out of order, no more under way than was said, and errors where they belong."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.cache import Location
from lab_backup.repository.pack import Entry
from lab_backup.repository.pack_blocks import PackBlocks
from lab_backup.repository.ranges import MAX_GAP, MAX_RANGE, ranges
from lab_backup.repository.staged import staged
from lab_backup.storage.base import TransientStorageError
from lab_backup.storage.memory import MemoryStorage

BLOCK, KEPT = 1000, 5


class Counting(MemoryStorage):
    """Counts reads, and fails while `failures` are left."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.reads = 0
        self.failures = 0

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read a part."""
        self.reads += 1
        if self.failures:
            self.failures -= 1
            raise TransientStorageError("away")
        return super().read(path, offset, length)


@given(
    size=st.integers(0, 3 * BLOCK),
    places=st.lists(st.tuples(st.integers(0, 4 * BLOCK), st.integers(0, BLOCK + 10)), max_size=10),
)
def test_blocks_return_what_is_there(size: int, places: list[tuple[int, int]]) -> None:
    """Any place of an object is read as from the storage itself, also across blocks and its end, and each block once."""
    storage = Counting()
    content = bytes(number % 251 for number in range(size))
    storage.upload("packs/a", content)
    blocks = PackBlocks(storage, size=BLOCK, kept=KEPT)
    for offset, length in places:
        assert blocks.read("packs/a", offset, length) == content[offset : offset + length]
    assert storage.reads <= 6


def test_a_block_is_read_once_by_many() -> None:
    """Threads that need the same block at once make one request."""
    storage = Counting()
    storage.upload("packs/a", bytes(BLOCK))
    blocks = PackBlocks(storage, size=BLOCK, kept=KEPT)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda at: blocks.read("packs/a", at, 10), range(0, 900, 10))) == {bytes(10)}
    assert storage.reads == 1


def test_a_failed_or_forgotten_block_is_read_again() -> None:
    """A storage that was away, or bytes that came wrong, leave nothing behind; and memory is bounded."""
    storage = Counting()
    storage.upload("packs/a", b"first")
    blocks = PackBlocks(storage, size=BLOCK, kept=KEPT)
    storage.failures = 1
    with pytest.raises(TransientStorageError):
        blocks.read("packs/a", 0, 5)
    assert blocks.read("packs/a", 0, 5) == b"first"
    storage.upload("packs/a", b"other")
    assert blocks.read("packs/a", 0, 5) == b"first"
    blocks.forget("packs/a", 0, 5)
    assert blocks.read("packs/a", 0, 5) == b"other"
    for number in range(KEPT):
        storage.upload(f"packs/{number}", b"x")
        blocks.read(f"packs/{number}", 0, 1)
    before = storage.reads
    blocks.read("packs/a", 0, 5)
    assert storage.reads == before + 1


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40 * 1024 * 1024), st.integers(1, 200_000)),
        max_size=60,
        unique_by=lambda place: place[:2],
    )
)
def test_ranges_hold_every_place_once(places: list[tuple[int, int, int]]) -> None:
    """Each place is in exactly one request, in order, with small gaps, and no request is too large."""
    wanted = [
        Location(pack, Entry(offset.to_bytes(32, "big"), offset, stored, stored, 0)) for pack, offset, stored in places
    ]
    found = list(ranges(wanted))
    assert [Location(pack, entry) for pack, entries in found for entry in entries] == sorted(
        wanted, key=lambda location: (location.pack, location.entry.offset)
    )
    for _, entries in found:
        for before, after in pairwise(entries):
            assert after.offset - before.offset - before.stored <= MAX_GAP
        assert len(entries) == 1 or entries[-1].offset + entries[-1].stored - entries[0].offset <= MAX_RANGE


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 3))
def test_stages_keep_the_order(count: int, fetchers: int, workers: int) -> None:
    """What comes out is in order, and no more than the threads and one more are under way."""
    lock, under_way, most = threading.Lock(), 0, 0

    def fetch(item: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return item * 10

    found = []
    for item, result in staged(
        iter(range(count)), fetch, lambda item, data: item + data, fetchers=fetchers, workers=workers
    ):
        with lock:
            under_way -= 1
        found.append((item, result))
    assert found == [(item, 11 * item) for item in range(count)]
    assert most <= fetchers + workers + 1


@pytest.mark.parametrize("stage", ["fetch", "work"])
def test_stages_hand_on_errors_in_their_turn(stage: str) -> None:
    """What came before the error is yielded; after it nothing is begun."""
    begun = []

    def fetch(item: int) -> int:
        begun.append(item)
        if stage == "fetch" and item == 3:
            raise ValueError("bad")
        return item

    def work(item: int, data: int) -> int:
        if stage == "work" and item == 3:
            raise ValueError("bad")
        return data

    found: list[int] = []
    with pytest.raises(ValueError, match="bad"):
        found.extend(item for item, _ in staged(iter(range(1000)), fetch, work, fetchers=2, workers=1))
    assert found == [0, 1, 2]
    assert max(begun) < 10


def test_a_cancelled_block_does_not_hang() -> None:
    """Who gives up in the middle leaves nobody waiting: what was not begun is cancelled for all, and is read anew the next time."""
    storage, blocking, begun = Counting(), threading.Event(), threading.Event()
    storage.upload("packs/a", bytes(4 * BLOCK))
    blocks = PackBlocks(storage, size=BLOCK, kept=KEPT)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(begun.set)
        pool.submit(blocking.wait, 30)
        assert begun.wait(30)
        waiting = blocks.get("packs/a", 1, pool.submit)
        assert blocks.get("packs/a", 1, pool.submit) is waiting
        pool.shutdown(wait=False, cancel_futures=True)
        blocking.set()
        with pytest.raises(CancelledError):
            waiting.result(30)
    blocks.forget("packs/a", BLOCK, 1)
    assert blocks.read("packs/a", BLOCK, 3) == bytes(3)
