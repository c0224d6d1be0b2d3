"""What a service is told by its environment. Only the composition roots (`service`, `worker`, the API's factory) read it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab_backup.errors import UsageError

DATABASE = "DATABASE_URL"
REDIS = "REDIS_URL"
DATA = "LAB_BACKUP_DATA_DIR"
REQUESTS = "LAB_BACKUP_REQUESTS_PER_MINUTE"
SYSLOG = "LAB_BACKUP_SYSLOG"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the database and Redis are, the folder that holds this service's secrets and caches, how many requests a person may send, and the syslog server that gets the logs too."""

    database_url: str
    redis_url: str
    data_directory: Path
    requests_per_minute: int = 1200
    syslog: str | None = None

    @property
    def secrets_directory(self) -> Path:
        """The folder of the keys that are made once."""
        return self.data_directory / "secrets"

    @property
    def cache_directory(self) -> Path:
        """The folder for local copies of indexes."""
        return self.data_directory / "cache"


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings. Raises UsageError naming the first variable that is missing or makes no sense."""
    values = {}
    for name in (DATABASE, REDIS, DATA):
        values[name] = environment.get(name, "")
        if not values[name]:
            raise UsageError(
                f"{name} is not set",
                hint="`lab-backup up` sets it by itself; on several hosts give all of them the same database, Redis and secrets",
            )
    rate = environment.get(REQUESTS, "1200")
    if not rate.isascii() or not rate.isdigit() or int(rate) < 1:
        raise UsageError(f"{REQUESTS} is not a number of requests a minute", hint="such as 1200")
    return Settings(
        _with_driver(values[DATABASE]), values[REDIS], Path(values[DATA]), int(rate), environment.get(SYSLOG)
    )


def _with_driver(url: str) -> str:
    """Name the one driver that is used, for addresses as other programs write them."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    if not url.startswith("postgresql+psycopg://"):
        raise UsageError(f"{DATABASE} names no PostgreSQL database", hint="write postgresql://user@host/name")
    return url
