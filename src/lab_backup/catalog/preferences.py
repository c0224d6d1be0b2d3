"""What an administrator sets for the whole service, in one row of the settings."""

from typing import Annotated

import msgspec
from sqlalchemy.orm import Session

from lab_backup.catalog.people import Setting

NAME = "preferences"
Days = Annotated[int, msgspec.Meta(ge=1, le=3650)]


class Preferences(msgspec.Struct, kw_only=True, frozen=True):
    """`jobs_at_once`: over all workers. Logs and news older than so many days go. `heartbeat_url` is asked after every good round of the beat.

    `maintenance`: no job begins but looks at hosts and storages, because of `maintenance_reason`; hosts in `resting` (their ids) rest alone.
    """

    jobs_at_once: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    keep_jobs_days: Days = 365
    keep_logs_days: Days = 90
    keep_news_days: Days = 90
    heartbeat_url: str | None = None
    maintenance: bool = False
    maintenance_reason: str = ""
    resting: list[str] = []


def read_preferences(session: Session) -> Preferences:
    """Return what is set, with the usual values for the rest."""
    row = session.get(Setting, NAME)
    return Preferences() if row is None else msgspec.convert(row.value, Preferences)


def write_preferences(session: Session, preferences: Preferences) -> None:
    """Keep them. The caller commits."""
    row = session.get(Setting, NAME, with_for_update=True)
    value = msgspec.to_builtins(preferences)
    if row is None:
        session.add(Setting(name=NAME, value=value))
    else:
        row.value = value
