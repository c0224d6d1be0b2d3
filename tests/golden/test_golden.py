"""Repositories that released versions wrote stay readable, byte for byte, and can be worked with.

Each folder beside this file is one of them, made by `make.py` of that version.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab_backup.operations.catalogue import find_backup, list_backups
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import undelete
from lab_backup.operations.repositories import open_repository
from lab_backup.operations.verify import verify
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from support.engine import back_up, restored

VERSIONS = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a copy of a golden repository, which may be written to, and what is expected of it."""
    folder: Path = request.param
    shutil.copytree(folder / "repository", tmp_path / "repository")
    return tmp_path, json.loads((folder / "expected.json").read_text())


def opened(folder: Path, key: str) -> Repository:
    """Open the copy."""
    return open_repository(str(folder / "repository"), passphrase=key, cache_directory=folder / "cache")


def assert_restores(repository: Repository, expected: dict[str, Any]) -> None:
    """Assert that every disk and file of every backup comes back."""
    for backup_id, backup in expected["backups"].items():
        manifest = find_backup(repository, backup_id).manifest
        found = {disk.name: restored(repository, backup_id, disk.name) for disk in manifest.disks}
        found |= {file.name: Reader(repository).read_file(file) for file in manifest.files}
        assert {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in found.items()
        } == backup["content"]


def test_there_are_some() -> None:
    """A missing checkout of the repositories is no reason to pass."""
    assert VERSIONS


def test_reads(golden: tuple[Path, dict[str, Any]]) -> None:
    """It opens by passphrase and by recovery key, lists what it should, and restores bit for bit."""
    folder, expected = golden
    for key in (expected["passphrase"], expected["recovery_key"]):
        with opened(folder, key) as repository:
            assert (repository.config.id, repository.config.chunk_size) == (expected["id"], expected["chunk_size"])
            listing = list_backups(repository)
            assert not listing.unreadable
            assert {item.backup for item in listing.backups} == set(expected["backups"])
            for item in listing.backups:
                wanted = expected["backups"][item.backup]
                assert item.time == wanted["time"]
                assert f"{item.source_kind}/{item.source}" == wanted["source"]
                assert (item.kind, item.parent, item.checksum) == (wanted["kind"], wanted["parent"], wanted["checksum"])
                assert (item.protected, item.deleted is not None) == (wanted["protected"], wanted["deleted"])
                assert (item.verified.level if item.verified else None) == (wanted["verified"] or {}).get("level")
            assert_restores(repository, expected)


def test_works(golden: tuple[Path, dict[str, Any]]) -> None:
    """It verifies clean, takes a new increment, gives back a deleted backup, and survives a collection."""
    folder, expected = golden
    with opened(folder, expected["recovery_key"]) as repository:
        assert verify(repository, read_data=True).damage == ()
        deleted = next(backup_id for backup_id, backup in expected["backups"].items() if backup["deleted"])
        undelete(repository, deleted)
        newest = next(item for item in reversed(list_backups(repository).backups) if item.source == "golden")
        disks = {disk.name: restored(repository, newest.backup, disk.name) for disk in newest.disks}
        again = back_up(repository, disks, changes=[], name="golden")
        assert (again.kind, again.parent, again.bytes_stored) == ("incremental", newest.backup, 0)
        collect(repository, grace=0, exclusive=True)
        assert verify(repository, read_data=True).damage == ()
        assert_restores(repository, expected)


def test_rebuilds(golden: tuple[Path, dict[str, Any]]) -> None:
    """With all index objects gone, everything is found by the packs' own tables."""
    folder, expected = golden
    shutil.rmtree(folder / "repository" / "index")
    with opened(folder, expected["recovery_key"]) as repository:
        assert_restores(repository, expected)


def test_works_without_a_copy_of_config(golden: tuple[Path, dict[str, Any]]) -> None:
    """One that was made before `config` had a copy restores, says what is missing, and gets it by a collection."""
    folder, expected = golden
    (folder / "repository" / "config.copy").unlink()
    with opened(folder, expected["recovery_key"]) as repository:
        assert_restores(repository, expected)
        assert [damage.touches for damage in verify(repository).damage] == [("config.copy",)]
        collect(repository)
        assert verify(repository).damage == ()
