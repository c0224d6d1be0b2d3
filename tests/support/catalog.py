"""A PostgreSQL of its own with the service's tables, for tests of the catalog."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from lab_backup.catalog.base import Base
from lab_backup.catalog.migrate import migrate
from lab_backup.service.account import service_account
from lab_backup.service.database import Database
from lab_backup.service.folders import prepare


@contextmanager
def running_database() -> Iterator[str]:
    """Run a PostgreSQL and give its address; the tables are there."""
    folder = Path(tempfile.mkdtemp(prefix="lb-pg-"))
    try:
        account = service_account()
        prepare(folder, account)
        database = Database(folder, account)
        process = database.start()
        try:
            migrate(database.url)
            yield database.url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder)


def empty_tables(connection: Connection) -> None:
    """Take everything out of the tables but the audit log, which lets nobody."""
    names = ", ".join(table.name for table in Base.metadata.sorted_tables if table.name != "audit_logs")
    connection.execute(text(f"truncate {names} cascade"))  # names of our own
