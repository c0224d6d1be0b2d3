"""Bringing a database to the newest shape. Any number may try at once: one does it, the others wait for it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from lab_backup.errors import LabBackupError

LOCK = 7_236_118_001  # of this program alone among advisory locks


def configuration(connection: Connection | None = None) -> Config:
    """Return how Alembic finds the migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def newest() -> str:
    """Return the version that this program works with."""
    return ScriptDirectory.from_config(configuration()).get_current_head() or ""


def migrate(url: str) -> str:
    """Bring the database at `url` to the newest version and return it. Raises LabBackupError where it cannot be reached or is newer than this program."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": LOCK})
            connection.commit()
            try:
                _upgrade(connection)
            finally:
                connection.rollback()
                connection.execute(text("select pg_advisory_unlock(:key)"), {"key": LOCK})
                connection.commit()
    except OperationalError as error:
        raise LabBackupError(
            "the database cannot be reached", hint="look at DATABASE_URL, and whether PostgreSQL runs"
        ) from error
    finally:
        engine.dispose()
    return newest()


def _upgrade(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if found is not None and found not in known:
        raise LabBackupError(
            f"the database was made by a newer version of Lab Backup (migration {found})",
            hint="run that version, or a newer one",
        )
    command.upgrade(configuration(connection), "head")
    connection.commit()
