"""Which of several beats is the one that works: an advisory lock that ends with its connection."""

from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

LOCK = 7_236_118_002


class Leader:
    """Holds the lock while its connection lives."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def leads(self) -> bool:
        """Whether this process is the one that works now; takes the place of one that is gone."""
        try:
            if self._connection is None:
                connection = self._engine.connect()
                if not connection.scalar(text("select pg_try_advisory_lock(:key)"), {"key": LOCK}):
                    connection.close()
                    return False
                self._connection = connection
            self._connection.execute(text("select 1"))
            self._connection.rollback()
        except SQLAlchemyError:
            self.resign()
            raise
        return True

    def resign(self) -> None:
        """Let another one lead."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()
