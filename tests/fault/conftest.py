"""The stage on which races are played."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.repository import index_merge
from lab_backup.repository.session import BackupSession
from support.stage import Stage, single_threaded


@pytest.fixture
def fast_directory() -> Iterator[Path]:
    """Return a new folder, in memory where there is one for it: index caches are synced to disk at every change."""
    memory = Path("/dev/shm")  # noqa: S108  shared memory, which every Linux has; the folder in it is private
    with tempfile.TemporaryDirectory(prefix="lb-", dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, fast_directory: Path) -> Iterator[Stage]:
    """Return a repository in memory with a grace period of 24 hours, whose clock the engine uses too; indexes are soon merged."""
    single_threaded(monkeypatch)
    monkeypatch.setattr(index_merge, "MANY_INDEXES", 3)
    made = Stage(fast_directory)
    monkeypatch.setitem(BackupSession.__init__.__kwdefaults__ or {}, "clock", made.clock.seconds)
    yield made
    made.close()
