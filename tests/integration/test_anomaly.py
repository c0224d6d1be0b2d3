"""A source that is suddenly rewritten with random data: its backup warns, and the last one before is kept."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.operations.lifecycle import unprotect
from lab_backup.operations.prune import prune
from lab_backup.policy.retention import Policy
from lab_backup.repository import chunk_store
from lab_backup.repository.backups import Backups
from lab_backup.repository.repository import Repository
from lab_backup.storage.memory import MemoryStorage
from support.engine import CHUNK, back_up, new_repository

CHUNKS = 100


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """Return a repository in memory; of so few chunks each is sampled."""
    monkeypatch.setattr(chunk_store, "SAMPLE_ONE_IN", 1)
    with new_repository(MemoryStorage(), tmp_path) as opened:
        yield opened


def text(seed: int) -> bytes:
    """Return a chunk of words, different for each seed."""
    chooser = random.Random(seed)
    words = [f"word{number}" for number in range(200)]
    return " ".join(chooser.choice(words) for _ in range(CHUNK)).encode()[:CHUNK]


def ordinary(repository: Repository) -> tuple[list[bytes], list[str]]:
    """Back up a disk of text five times, with a little more change each time; return its chunks, and the ids."""
    chunks = [text(number) for number in range(CHUNKS)]
    ids = []
    for day in range(5):
        chunks[day] = text(1000 + day)
        done = back_up(repository, b"".join(chunks))
        assert not done.warnings
        assert not done.notes
        ids.append(done.backup)
    return chunks, ids


def test_encryption(repository: Repository) -> None:
    """It warns, in the manifest too; retention keeps the backup before until it is unprotected, and says why."""
    _, ids = ordinary(repository)
    struck = back_up(repository, random.Random(1).randbytes(CHUNKS * CHUNK))
    (warning,) = struck.warnings
    assert ids[-1][:12] in warning
    backups = Backups(repository)
    manifest = backups.find(struck.backup).manifest
    assert manifest.warnings == struck.warnings
    assert manifest.statistics.anomaly
    assert manifest.statistics.entropy is not None
    assert manifest.statistics.entropy > 7.5
    state = backups.find(ids[-1]).state
    assert state.protected
    assert struck.backup[:12] in state.protected_because
    again = back_up(repository, random.Random(2).randbytes(CHUNKS * CHUNK))
    assert ids[-1][:12] in "".join(again.warnings), "the last good one is still the one before the first odd one"
    prune(repository, Policy(last=1))
    assert backups.find(ids[-1]).state.deleted is None
    assert backups.find(ids[-2]).state.deleted is not None
    unprotect(repository, ids[-1])
    assert not backups.find(ids[-1]).state.protected_because
    prune(repository, Policy(last=1))
    assert backups.find(ids[-1]).state.deleted is not None


def test_growth_and_upgrade(repository: Repository) -> None:
    """A little random data is normal; much new text is noted, and protects nothing."""
    chunks, _ = ordinary(repository)
    chunks[10:13] = [random.Random(number).randbytes(CHUNK) for number in range(3)]
    grown = back_up(repository, b"".join(chunks))
    assert (grown.warnings, grown.notes) == ((), ())
    chunks[20:90] = [text(5000 + number) for number in range(70)]
    upgraded = back_up(repository, b"".join(chunks))
    assert upgraded.warnings == ()
    assert len(upgraded.notes) == 1
    assert not any(backup.state.protected for backup in Backups(repository).all())
