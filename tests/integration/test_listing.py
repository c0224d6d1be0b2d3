"""Listing many backups: a warm cache answers, the storage is asked for names only."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backups
from lab_backup.repository.envelope import Kind
from lab_backup.repository.manifest import Manifest, SourceInfo
from lab_backup.storage.memory import MemoryStorage
from support.engine import new_repository, reopen
from support.faulty import FaultyStorage

BACKUPS = 300


def test_no_request_for_each_backup(tmp_path: Path) -> None:
    """The first listing reads each manifest and mark once; after that, also in a new process, two lists are all there is."""
    storage = FaultyStorage(MemoryStorage())
    with new_repository(storage, tmp_path / "a") as repository:
        for number in range(BACKUPS):
            backup_id = f"{number:032x}"
            manifest = Manifest(
                version=1,
                backup=backup_id,
                repository=repository.config.id,
                time=(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)).isoformat(),
                source=SourceInfo(kind="vm", id="uuid", name="web"),
                kind="full",
                consistency="crash",
            )
            repository.put_object(Kind.MANIFEST, manifests.path(backup_id), manifests.encode(manifest))
            if number % 3 == 0:
                Backups(repository).mark(backup_id, "protected", value=True, time="t")
        storage.log.clear()
        assert len(Backups(repository).all()) == BACKUPS
        assert sum(call.startswith("read") for call in storage.log) == BACKUPS + BACKUPS // 3
    with reopen(repository, tmp_path / "a") as again:
        storage.log.clear()
        found = Backups(again).all()
        assert sum(backup.state.protected for backup in found) == BACKUPS // 3
        assert sorted(storage.log) == ["list manifests", "list marks"]
