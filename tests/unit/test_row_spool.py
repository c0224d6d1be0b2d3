"""Sorting rows in bounded memory: nothing is lost, whatever goes to disk on the way."""

import random
from pathlib import Path

import pytest

from lab_backup.repository import row_spool
from lab_backup.repository.pack import ENTRY
from lab_backup.repository.row_spool import BUCKETS, FEW, RowSpool


def table(source: random.Random, count: int) -> bytes:
    """Return a table of made-up blobs."""
    return b"".join(ENTRY.pack(source.randbytes(32), at, 20, 30, 1) for at in range(count))


@pytest.mark.parametrize("counts", [[], [0], [1], [5, 3], [FEW], [FEW, 1], [3000] * 9])
@pytest.mark.parametrize("memory", [1000, 1 << 30], ids=["on disk", "in memory"])
def test_sorted_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], memory: int) -> None:
    """All rows come back once, ascending by id, with their owners; few in one group, many in more; and no file stays."""
    monkeypatch.setattr(row_spool, "IN_MEMORY", memory)
    source = random.Random(1)
    expected = []
    with RowSpool(tmp_path) as spool:
        for owner, count in enumerate(counts):
            rows = table(source, count)
            spool.add(owner, rows)
            expected += [(row[:32], owner, row[32:]) for row in (rows[at : at + 45] for at in range(0, len(rows), 45))]
        groups = [list(group) for group in spool.groups()]
    assert [row for group in groups for row in group] == sorted(expected)
    assert len(groups) == (1 if len(expected) <= FEW else BUCKETS)
    assert list(tmp_path.iterdir()) == []


def test_equal_ids(tmp_path: Path) -> None:
    """One blob in several packs keeps all its places, those of smaller owners first."""
    row = ENTRY.pack(b"x" * 32, 100, 20, 30, 1)
    with RowSpool(tmp_path) as spool:
        for owner in (7, 3, 5):
            spool.add(owner, row)
        assert [owner for group in spool.groups() for _, owner, _ in group] == [3, 5, 7]
