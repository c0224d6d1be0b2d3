"""The service itself: its preferences, and maintenance."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.networks import HttpUrl

from lab_backup.api.schemas.base import Body, Shown, Text

Days = Annotated[int, Field(ge=1, le=3650)]


class PreferencesShown(Shown):
    """What is set for the whole service. `maintenance`: no job begins; `resting`: none on these hosts."""

    jobs_at_once: int
    keep_jobs_days: int
    keep_logs_days: int
    keep_news_days: int
    heartbeat_url: str | None
    maintenance: bool
    maintenance_reason: str
    resting: list[str]


class PreferencesUpdate(Body):
    """What changes; what is left out stays. `heartbeat_url` null: nobody is told that the service lives."""

    jobs_at_once: Annotated[int, Field(ge=1, le=1024)] = 16
    keep_jobs_days: Days = 365
    keep_logs_days: Days = 90
    keep_news_days: Days = 90
    heartbeat_url: HttpUrl | None = None


class ChangeShown(Shown):
    """Something that a document changed; `fields` are those that differ."""

    part: str
    name: str
    what: Literal["added", "changed", "removed"]
    fields: list[str]


class MaintenanceUpdate(Body):
    """Whether no job is to begin, and why."""

    on: bool
    reason: Text = ""
