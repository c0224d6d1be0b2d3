"""Giving the service a new master key: the database's credentials are sealed anew, in one transaction, then the key file is replaced."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT

from lab_backup.catalog.base import Sessions, connect
from lab_backup.catalog.migrate import migrate
from lab_backup.catalog.rewrapping import opens, rewrap_all
from lab_backup.catalog.workers import ALIVE, workers
from lab_backup.errors import BusyError, LabBackupError
from lab_backup.security.sealed import read_or_make_key
from lab_backup.service.account import service_account
from lab_backup.service.database import Database
from lab_backup.service.folders import held, prepare
from lab_backup.service.tree import Tree
from lab_backup.settings import DATABASE, read_settings

NAME = "master.key"
NEXT = "master.key.next"


def rotate(folder: Path) -> int:
    """Give the service of `folder`, or that of the environment, a new master key; return how many credentials it seals now.

    The service must not run: it holds the old key. Who is interrupted calls it again. Raises BusyError, SealError, LabBackupError.
    """
    with _database(folder) as (sessions, secrets):
        current, following = secrets / NAME, secrets / NEXT
        with sessions() as session:
            if following.exists() and not opens(session, read_or_make_key(current)):
                following.replace(current)  # a rotation before was interrupted after its commit
        following.unlink(missing_ok=True)
        old, new = read_or_make_key(current), read_or_make_key(following)
        with sessions() as session:
            count = rewrap_all(session, old, new)
            session.commit()
        following.replace(current)
        folder_number = os.open(secrets, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_number)
        finally:
            os.close(folder_number)
    return count


@contextmanager
def _database(folder: Path) -> Iterator[tuple[Sessions, Path]]:
    """Open the database, which nobody else may use meanwhile, and tell where the secrets are."""
    if os.environ.get(DATABASE):
        settings = read_settings()
        engine, sessions = connect(settings.database_url)
        try:
            with sessions() as session:
                now = datetime.now(UTC)
                if any(now - row.seen_at < ALIVE for row in session.scalars(workers())):
                    raise BusyError(
                        "workers of this service were heard within the last minute",
                        hint="end API, workers and beat on all hosts first",
                    )
            yield sessions, settings.secrets_directory
        finally:
            engine.dispose()
        return
    if not (folder / "secrets" / NAME).exists():
        raise LabBackupError(f"there is no service in {folder}", hint="say where it is by --data-dir")
    account = service_account()
    prepare(folder, account)
    with held(folder):
        tree = Tree()
        try:
            database = Database(folder, account)
            tree.add("database", database.start(), end=SIGINT)
            migrate(database.url)
            engine, sessions = connect(database.url)
            try:
                yield sessions, folder / "secrets"
            finally:
                engine.dispose()
        finally:
            tree.stop()
