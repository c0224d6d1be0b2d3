"""JSON that somebody else wrote: whatever it holds, it becomes a value of the wanted type or a DamagedError."""

from datetime import datetime
from typing import Annotated, TypeVar

import msgspec

from lab_backup.repository.errors import DamagedError

T = TypeVar("T")

Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # without an offset it could not be compared with others


def parse(data: bytes, kind: type[T], what: str) -> T:
    """Return the value of type `kind` that `data` holds. Raises DamagedError, naming `what`.

    Text that is not UTF-8, numbers of thousands of digits and brackets nested without end are damage like any other.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{what} is not valid: {error}") from error
