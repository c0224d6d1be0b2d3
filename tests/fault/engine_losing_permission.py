"""A backup whose repository is closed to it midway. `test_permissions.py` runs this without root's privileges: argv[1] is an empty folder."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest

from lab_backup.blocks import Buffer
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.packer import Packer
from lab_backup.storage.base import StorageAccessError
from lab_backup.storage.local import LocalStorage
from support.engine import CHUNK, back_up, new_repository, reopen, restored


class Closing(LocalStorage):
    """A folder whose mode somebody changes just before the `closes_at`-th upload from now."""

    closes_at = -1

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store, or not."""
        self.closes_at -= 1
        if self.closes_at == 0:
            set_mode(self._path, 0o500)
        super().upload(path, data, metadata)


def set_mode(root: Path, mode: int) -> None:
    """Change the mode of every folder below `root`."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def main(directory: Path) -> None:
    """Close the repository before each upload of a backup in turn."""
    root = directory / "repository"
    root.mkdir()
    storage = Closing(root)
    (Packer.__init__.__kwdefaults__ or {})["pack_size"] = 3 * CHUNK
    content = os.urandom(20 * CHUNK)
    with new_repository(storage, directory / "cache") as repository:
        kept = back_up(repository, content[: 6 * CHUNK], name="kept").backup
        tries = 0
        for tries in range(1, 100):
            storage.closes_at = tries
            try:
                back_up(repository, content)
            except StorageAccessError as error:
                refused = error
            else:
                break
            finally:
                set_mode(root, 0o700)
            assert refused.hint
            assert [backup.id for backup in Backups(repository).all()] == [kept]
        assert tries > 3
        storage.closes_at = -1
        set_mode(root, 0o700)
        done = back_up(repository, content).backup
        with reopen(repository, directory / "other") as other:
            assert restored(other, done) == content
            assert restored(other, kept) == content[: 6 * CHUNK]
            assert not verify(other, read_data=True).damage
    set_mode(root, 0o500)
    with pytest.raises(PermissionError):  # or none of this proved anything
        (root / "packs" / "probe").touch()
    set_mode(root, 0o700)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
