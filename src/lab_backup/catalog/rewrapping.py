"""A new master key for all credentials that the database holds."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from lab_backup.catalog.news import NotificationConfig
from lab_backup.catalog.people import User
from lab_backup.catalog.places import Storage
from lab_backup.security.sealed import SealError, rewrap, unseal

# Which columns of which table are sealed, and for which place.
SEALED = (
    (Storage, "passphrase", "storage"),
    (Storage, "credentials", "storage-credentials"),
    (NotificationConfig, "address", "channel"),
    (NotificationConfig, "secret", "channel"),
    (User, "totp", "totp"),
)


def rewrap_all(session: Session, old: bytes, new: bytes) -> int:
    """Seal every credential anew; return how many there are. The caller commits, then puts the new key in the place of the old. Raises SealError; then nothing is to be committed."""
    count = 0
    for table, column, place in SEALED:
        for row in session.scalars(select(table).with_for_update()):
            sealed = getattr(row, column)
            if sealed is not None:
                setattr(row, column, rewrap(old, new, sealed, place=f"{place}/{row.id}"))
                count += 1
    return count


def opens(session: Session, key: bytes) -> bool:
    """Whether a key opens what the database holds; also where it holds nothing."""
    for table, column, place in SEALED:
        for row in session.scalars(select(table)):
            sealed = getattr(row, column)
            if sealed is not None:
                try:
                    unseal(key, sealed, place=f"{place}/{row.id}")
                except SealError:
                    return False
                return True
    return True
