"""What a storage was asked is counted: every attempt, every outcome, every byte, and no secret."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from lab_backup.storage.base import NoSpaceError, ObjectInfo, ObjectNotFoundError, TransientStorageError
from lab_backup.storage.memory import MemoryStorage
from lab_backup.storage.metered import MeteredStorage, StorageMetrics
from lab_backup.storage.retry import RetryingStorage
from support.program import Program


def test_each_attempt_counts_with_its_outcome() -> None:
    """Of an upload that fails once there are two attempts, one of them failed, and its bytes went up once."""
    registry = CollectorRegistry()
    failures = [TransientStorageError("away"), NoSpaceError("full")]

    class Failing(MemoryStorage):
        def stat(self, path: str) -> ObjectInfo:
            if failures:
                raise failures.pop(0)
            return super().stat(path)

    inner = Failing()
    storage = RetryingStorage(MeteredStorage(inner, StorageMetrics(registry)), sleep=lambda _: None)
    storage.upload("a", b"12345")
    with pytest.raises(NoSpaceError):
        storage.stat("a")
    storage.stat("a")
    with pytest.raises(ObjectNotFoundError):
        storage.stat("b")
    assert storage.read("a", 1, 2) == b"23"
    assert next(storage.list()).path == "a"

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"lab_backup_storage_{name}", {"storage": inner.url, **labels})

    outcomes = {"ok": 2, "TransientStorageError": 1, "NoSpaceError": 1}
    assert {name: value("requests_total", operation="stat", outcome=name) for name in outcomes} == outcomes
    assert value("bytes_total", direction="up") == 5
    assert value("bytes_total", direction="down") == 2
    assert value("requests_total", operation="list", outcome="ok") == 1
    assert value("request_seconds_count", operation="read") == 1


def test_a_command_leaves_its_metrics_in_a_file(tmp_path: Path) -> None:
    """LAB_BACKUP_METRICS gets the figures of a command, also of one that fails; where it cannot be written that is a warning."""
    file = tmp_path / "lab.prom"
    lab = Program(tmp_path, LAB_BACKUP_REPO=str(tmp_path / "repository"), LAB_BACKUP_PASSPHRASE="correct horse")
    lab.ok("repo", "init")
    lab.ok("list", LAB_BACKUP_METRICS=str(file))
    text = file.read_text()
    assert 'operation="list",outcome="ok"' in text
    assert "correct horse" not in text
    file.unlink()
    assert lab("show", "latest:vm/none", LAB_BACKUP_METRICS=str(file)).code != 0
    assert file.exists()
    other = str(tmp_path / "other")
    lab.ok("repo", "init", other, LAB_BACKUP_REPO=other)
    lab("replicate", "--all", "--to", other, LAB_BACKUP_METRICS=str(file), LAB_BACKUP_FROM_PASSPHRASE="correct horse")
    assert all(f'{place}"' in file.read_text() for place in (tmp_path / "repository", other))
    refused = lab("list", LAB_BACKUP_METRICS=str(tmp_path / "nowhere" / "lab.prom"))
    assert (refused.code, "cannot be written" in refused.stderr) == (0, True)
