"""The local index with ten million chunks: how large it is, how fast it loads and answers, what it keeps in memory.

python index.py COUNT FOLDER     one process that loads COUNT made-up chunks and looks some up; prints its figures as JSON
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab_backup.repository.cache import IndexCache
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import ENTRY, ID, PACK_ID, WRAPPED, PackInfo, PackKind
from lab_backup.units import KiB
from measure import run, stored_bytes

CHUNK = 128 * KiB
STORED = CHUNK * 2 // 5  # a usual ratio
PACK_CHUNKS = 640  # what then fits into a pack of 32 MiB
INDEX_PACKS = 16
LOOKUPS = 200_000


def measure_index(count: int, folder: Path) -> dict[str, Any]:
    """Return the figures of an index of `count` chunks, loaded and used in a process of its own."""
    cost = run([sys.executable, __file__, str(count), folder / "index"])
    return {**json.loads(cost.output), "count": count, "peak_anonymous": cost.peak_anonymous, "peak": cost.peak}


def _packs(count: int, source: random.Random) -> Iterator[IndexedPack]:
    for first in range(0, count, PACK_CHUNKS):
        rows = range(min(PACK_CHUNKS, count - first))
        table = b"".join(ENTRY.pack(source.randbytes(ID), row * STORED, STORED, CHUNK, 1) for row in rows)
        info = PackInfo(source.randbytes(PACK_ID), PackKind.DATA, len(rows) * STORED, bytes(WRAPPED))
        yield IndexedPack(info, table)


def _load(cache: IndexCache, count: int, source: random.Random) -> tuple[float, list[bytes]]:
    """Load the index objects one after the other. Returns the seconds, and a sample of ids."""
    seconds = 0.0
    sample: list[bytes] = []
    packs = _packs(count, source)
    for number in itertools.count():
        held = list(itertools.islice(packs, INDEX_PACKS))
        if not held:
            break
        sample.append(held[0].table[:ID])
        start = time.perf_counter()
        cache.load([(f"index-{number}", held)])
        seconds += time.perf_counter() - start
    return seconds, sample


def _microseconds(call: Callable[[bytes], object], names: list[bytes]) -> float:
    start = time.perf_counter()
    for name in names:
        call(name)
    return (time.perf_counter() - start) / len(names) * 1e6


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KiB
    raise AssertionError


def main() -> None:
    """Load, look up, print."""
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    source = random.Random(count)
    with IndexCache(folder) as cache:
        seconds, sample = _load(cache, count, source)
    with IndexCache(folder) as cache:
        cache.set_states(removed=(), condemned=())
        known = source.choices(sample, k=LOOKUPS)
        unknown = [source.randbytes(ID) for _ in range(LOOKUPS)]
        with cache.snapshot() as get:
            assert all(get(name) is not None for name in sample)
            figures = {
                "load_seconds": seconds,
                "size": stored_bytes(folder),
                "known_microseconds": _microseconds(get, known),
                "unknown_microseconds": _microseconds(get, unknown),
                "locate_microseconds": _microseconds(cache.locate, known),
                "anonymous_after": _anonymous(),
            }
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
