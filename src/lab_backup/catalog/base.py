"""What all tables share, and how a database is reached."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import DateTime, Engine, MetaData, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

POOL = 10
CONNECT_SECONDS = 10

NAMES = {  # constraints have the same names in every database, so that migrations can speak of them
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Json = dict[str, Any]
Sessions = sessionmaker[Session]
AsyncSessions = async_sessionmaker[AsyncSession]
DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""What a database that is down, or has no connection left, makes of a request."""
UNSTORABLE = (DataError,)
"""What becomes of a value that PostgreSQL does not take: a NUL in a text, a number beyond its type."""
TAKEN = IntegrityError
"""What it makes of a row that another one keeps from being there, or still needs."""
DatabaseError = SQLAlchemyError
"""What goes wrong in a database, for who must not know what lies below the catalog."""


__all__ = [
    "DATABASE_AWAY",
    "TAKEN",
    "UNSTORABLE",
    "AsyncSession",
    "AsyncSessions",
    "Base",
    "DatabaseError",
    "Json",
    "Row",
    "Session",
    "Sessions",
    "connect",
    "connect_async",
]


class Base(DeclarativeBase):
    """The root of all tables. Times are in UTC."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True), Json: JSONB, list[str]: JSONB}


class Row(Base):
    """A table whose rows have an id and a moment when they were made."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    created_at: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp()
    )  # rows of one transaction keep their order


def connect(url: str) -> tuple[Engine, Sessions]:
    """Return the engine and the sessions of a worker. Connections are made when they are needed, so after a fork."""
    engine = create_engine(
        url,
        pool_size=POOL,
        pool_pre_ping=True,
        json_deserializer=msgspec.json.decode,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "lab-backup"},
    )
    return engine, sessionmaker(engine, expire_on_commit=False)


def connect_async(url: str) -> tuple[AsyncEngine, AsyncSessions]:
    """Return the engine and the sessions of the API."""
    engine = create_async_engine(
        url,
        pool_size=POOL,
        pool_pre_ping=True,
        json_deserializer=msgspec.json.decode,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "lab-backup api"},
    )
    return engine, async_sessionmaker(engine, expire_on_commit=False)
