"""What all bodies share."""

from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lab_backup.catalog.paging import LIMIT, MOST, Order

T = TypeVar("T")


class Body(BaseModel):
    """What a client sends: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class Shown(BaseModel):
    """What a client gets, read off a row."""

    model_config = ConfigDict(from_attributes=True)


class Listed(BaseModel, Generic[T]):
    """A page of a list. `next` is the cursor of the one that follows, null at the end."""

    items: list[T]
    next: str | None


class Paging(BaseModel):
    """Which page of a list."""

    cursor: str | None = Field(default=None, max_length=2000)
    limit: int = Field(default=LIMIT, ge=1, le=MOST)
    order: Order = "newest"


InPages = Annotated[Paging, Query()]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$", examples=["every night"])]
Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
Secret = Annotated[SecretStr, Field(min_length=1, max_length=1024)]
