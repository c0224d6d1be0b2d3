"""Makes a golden repository: one that this version wrote, for all later versions to read. No test runs this.

    PYTHONPATH=tests .venv/bin/python tests/golden/make.py tests/golden/0.1.0

It holds two backups of an image-like disk with two configuration files, full and incremental, the second one protected; a backup of
another source, compressed with gzip and marked as deleted; a verification; and a pack that is condemned. `expected.json` says what must come back.
"""

import hashlib
import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from lab_backup import __version__
from lab_backup.extent import Extent
from lab_backup.operations.catalogue import BackupSummary, find_backup, list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete, protect
from lab_backup.operations.verify import verify
from lab_backup.repository.repository import RESERVE
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB, MiB
from support.engine import back_up, new_repository, restored

PASSPHRASE = "golden passphrase"
CHUNK = 32 * KiB
DISK = 70 * CHUNK + 12_345  # two levels of the chunk tree, and a short last chunk


class Clock:
    """A clock that is moved by hand, so that things can be old."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now


def disk_content(source: random.Random) -> bytearray:
    """Return a disk as guests fill them: text, noise, repetitions, and much that was never written."""
    disk = bytearray(DISK)
    disk[: 3 * CHUNK] = b"".join(b"%08d a line in a log that goes on and on\n" % at for at in range(2500))[: 3 * CHUNK]
    disk[MiB : MiB + 100_000] = source.randbytes(100_000)
    disk[MiB + 300_000 : MiB + 300_000 + 2 * CHUNK] = disk[:CHUNK] * 2
    disk[-5000:] = source.randbytes(5000)
    return disk


def described(summary: BackupSummary, content: dict[str, bytes]) -> dict[str, object]:
    """Return what must be true of a backup for ever."""
    return {
        "time": summary.time,
        "source": f"{summary.source_kind}/{summary.source}",
        "kind": summary.kind,
        "parent": summary.parent,
        "checksum": summary.checksum,
        "protected": summary.protected,
        "deleted": summary.deleted is not None,
        "verified": None if summary.verified is None else msgspec.to_builtins(summary.verified),
        "content": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        },
    }


def make(folder: Path) -> None:
    """Make the repository in the new `folder`."""
    clock, source = Clock(), random.Random(42)
    storage = MemoryStorage(clock=clock)
    files = {
        "domain.xml": b"<domain type='kvm'><name>golden</name></domain>\n",
        "nvram": bytes(8 * KiB) + b"boot order",
    }
    contents: dict[str, dict[str, bytes]] = {}
    with TemporaryDirectory() as cache:
        repository = new_repository(storage, Path(cache), chunk_size=CHUNK, compression="zstd:3", passphrase=PASSPHRASE)
        garbage = back_up(repository, source.randbytes(2000), name="garbage")
        delete(repository, garbage.backup, now=True)
        clock.now += timedelta(days=2)
        assert collect(repository).packs_condemned
        disk = disk_content(source)
        first = back_up(repository, {"vda": bytes(disk), "vdb": b""}, name="golden", files=files)
        contents[first.backup] = {"vda": bytes(disk), "vdb": b"", **files}
        changes = [Extent(40_000, 600), Extent(MiB, 2 * CHUNK, zero=True), Extent(DISK - 3, 3)]
        disk[40_000:40_600] = source.randbytes(600)
        disk[MiB : MiB + 2 * CHUNK] = bytes(2 * CHUNK)
        disk[-3:] = b"end"
        second = back_up(repository, {"vda": bytes(disk), "vdb": b""}, changes=changes, name="golden", files=files)
        contents[second.backup] = {"vda": bytes(disk), "vdb": b"", **files}
        protect(repository, second.backup)
        verify(repository, [first.backup], read_data=True)
        repository.config = msgspec.structs.replace(repository.config, compression="gzip:9")
        other = disk_content(random.Random(43))[:200_000][::-1]
        third = back_up(repository, bytes(other), name="other")
        contents[third.backup] = {"vda": bytes(other)}
        delete(repository, third.backup)
        for backup_id, content in contents.items():
            for entry in find_backup(repository, backup_id).manifest.disks:
                assert restored(repository, backup_id, entry.name) == content[entry.name]
        summaries = list_backups(repository).backups
        expected = {
            "written_by": __version__,
            "passphrase": PASSPHRASE,
            "recovery_key": repository.keys.recovery_key(),
            "id": repository.config.id,
            "chunk_size": repository.config.chunk_size,
            "backups": {summary.backup: described(summary, contents[summary.backup]) for summary in summaries},
        }
        repository.close()
    for info in storage.list():
        if info.path != RESERVE:  # may be missing, and would be most of it
            path = folder / "repository" / info.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(storage.read(info.path))
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lifecycle", "verify"):
            patch.setattr(f"lab_backup.operations.{module}.who", lambda: "maker@golden")  # marks say who made them
        make(Path(sys.argv[1]))
