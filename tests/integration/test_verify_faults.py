"""Verification on a storage that fails, and a hypervisor whose list of changes lies."""

import random
from pathlib import Path

import pytest

from lab_backup.extent import Extent
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.storage.base import StorageError
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up, new_repository, reopen, restored
from support.faulty import FaultyStorage

CONTENT = random.Random(7).randbytes(40 * CHUNK)


@pytest.mark.parametrize("letter", ["E", "A", "L"])
@pytest.mark.parametrize("half", [False, True], ids=["at once", "half way"])
def test_failing_storage_is_not_damage(tmp_path: Path, letter: str, *, half: bool) -> None:
    """Verification ends with the storage's error, records neither damage nor an outcome, and finds nothing afterwards."""
    inner = MemoryStorage()
    with new_repository(inner, tmp_path / "a") as repository:
        backup = back_up(repository, CONTENT).backup
        counting = FaultyStorage(inner)
        repository.storage = counting
        assert verify(repository, read_data=True).damage == ()
        reads = sum(call.startswith("read") for call in counting.log)
        before = Backups(repository).find(backup).state.verified
        repository.storage = FaultyStorage(inner, read="." * (reads // 2 if half else 0) + letter * 1000)
        with pytest.raises(StorageError):
            verify(repository, read_data=True)
        repository.storage = inner
    with reopen(repository, tmp_path / "b") as again:
        assert list(inner.list("damaged")) == []
        assert Backups(again).find(backup).state.verified == before
        assert verify(again, read_data=True).damage == ()


def test_lying_bitmap(tmp_path: Path) -> None:
    """A disk that changed everywhere, though nothing is called changed, is read whole with a warning, and restores as it is."""
    with new_repository(MemoryStorage(), tmp_path) as repository:
        back_up(repository, CONTENT)
        changed = random.Random(8).randbytes(len(CONTENT))
        second = back_up(repository, changed, changes=[Extent(0, 0)])
        assert second.kind == "full"
        assert "missed a change" in second.warnings[0]
        assert restored(repository, second.backup) == changed
