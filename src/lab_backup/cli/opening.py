"""Opening the repository that a command works on."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab_backup.cli.passphrase import read_passphrase

if TYPE_CHECKING:
    from lab_backup.repository.repository import Repository

CACHE = "LAB_BACKUP_CACHE"
"""Environment variable: the folder for local copies of indexes, in place of `~/.cache/lab-backup`."""


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that the user wants for caches, or None for the usual one."""
    given = environment.get(CACHE)
    return Path(given) if given else None


@contextmanager
def opened(url: str, passphrase_file: Path | None) -> Iterator["Repository"]:
    """Open the repository at `url`, asking for the passphrase only if it has one."""
    from lab_backup.operations.repositories import needs_passphrase, open_repository

    passphrase = read_passphrase(passphrase_file) if needs_passphrase(url) else None
    with open_repository(url, passphrase=passphrase, cache_directory=cache_directory()) as repository:
        yield repository
