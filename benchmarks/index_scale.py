"""Work with a repository of ten million chunks: what opening it for the first time costs, and what a backup and a restore keep in memory.

python index_scale.py [COUNT [FOLDER]]     makes the index of COUNT made-up chunks below FOLDER, uses it, prints figures, and ends with
status 1 where a lookup takes 10 microseconds or the anonymous memory reaches 256 MiB

Where `index.py` looks at the local copy of the index by itself, this goes the whole way of a new host: index objects as a collection merges
them, read from the storage, decrypted, checked and loaded.
"""

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from index import CHUNK, PACK_CHUNKS, STORED
from lab_backup.operations.backup import backup_image
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.restore import restore_image
from lab_backup.repository import index as index_objects
from lab_backup.repository.create import create_repository
from lab_backup.repository.envelope import Kind
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.index_merge import MERGE_ENTRIES
from lab_backup.repository.pack import ENTRY, HEADER_SIZE, ID, PACK_ID, WRAPPED, PackInfo, PackKind
from lab_backup.repository.repository import INDEX, Repository, open_repository
from lab_backup.storage.local import LocalStorage
from lab_backup.units import MiB
from measure import run, stored_bytes

MAX_ANONYMOUS = 256 * MiB
MAX_MICROSECONDS = 10.0
LOOKUPS = 200_000
IMAGE = 64 * MiB


def _packs(count: int, source: random.Random) -> Iterator[IndexedPack]:
    for first in range(0, count, PACK_CHUNKS):
        rows = range(min(PACK_CHUNKS, count - first))
        table = b"".join(ENTRY.pack(source.randbytes(ID), HEADER_SIZE + row * STORED, STORED, CHUNK, 1) for row in rows)
        info = PackInfo(source.randbytes(PACK_ID), PackKind.DATA, HEADER_SIZE + len(rows) * STORED, bytes(WRAPPED))
        yield IndexedPack(info, table)


def make(count: int, folder: Path) -> None:
    """Make a repository whose index names `count` chunks, in objects of the size that collections make."""
    (folder / "repository").mkdir()
    storage = LocalStorage(folder / "repository")
    create_repository(storage, passphrase=None)
    with open_repository(storage, passphrase=None, cache_directory=folder / "maker") as repository:
        batch: list[IndexedPack] = []
        for number, pack in enumerate(_packs(count, random.Random(count))):
            batch.append(pack)
            if len(batch) * PACK_CHUNKS >= MERGE_ENTRIES:
                _publish(repository, batch, number)
        _publish(repository, batch, count)


def _publish(repository: Repository, batch: list[IndexedPack], number: int) -> None:
    if batch:
        repository.put_object(Kind.INDEX, f"{INDEX}/{number:032x}", index_objects.encode(batch))
        batch.clear()


def _opened(folder: Path) -> Repository:
    storage = LocalStorage(folder / "repository")
    return open_repository(storage, passphrase=None, cache_directory=folder / "cache")


def use(step: str, count: int, folder: Path) -> None:
    """Do one step in this process; print its seconds, and what else it found out, as JSON."""
    figures: dict[str, float] = {}
    start = time.perf_counter()
    with _opened(folder) as repository:
        if step == "look up":
            known = [pack.table[:ID] for pack in itertools.islice(_packs(count, random.Random(count)), 1000)]
            source = random.Random(count + 1)
            names = [source.choice(known) if at % 2 else source.randbytes(ID) for at in range(LOOKUPS)]
            start = time.perf_counter()
            found = sum(repository.cache.locate(name) is not None for name in names)
            figures["microseconds"] = (time.perf_counter() - start) / LOOKUPS * 1e6
            assert found == LOOKUPS // 2
        elif step == "back up":
            backup_image(repository, folder / "image", name="image")
        elif step == "restore":
            restore_image(repository, find_backup(repository, "latest:image/image"), to=folder / "restored.raw")
    figures["seconds"] = time.perf_counter() - start
    json.dump(figures, sys.stdout)


def main() -> int:
    """Make, use in processes of their own, and judge."""
    if len(sys.argv) == 4:
        use(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        return 0
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(prefix="lb-index-", dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        make(count, folder)
        (folder / "image").write_bytes(random.Random(1).randbytes(IMAGE))
        worst, slowest = 0, 0.0
        for step in ("open", "look up", "back up", "restore"):
            cost = run([sys.executable, __file__, step, str(count), folder])
            figures = json.loads(cost.output)
            worst = max(worst, cost.peak_anonymous)
            slowest = max(slowest, figures.get("microseconds", 0.0))
            told = ", ".join(f"{value:.1f} {unit}" for unit, value in figures.items())
            print(f"{step:8} {told}, {cost.peak_anonymous / MiB:.0f} MiB anonymous")
        print(f"{count} chunks, local copy {stored_bytes(folder / 'cache') / MiB:.0f} MiB")
    return int(worst >= MAX_ANONYMOUS or slowest >= MAX_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
