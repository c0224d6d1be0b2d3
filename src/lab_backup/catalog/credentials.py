"""Credentials that rows hold, sealed for their place."""

from lab_backup.catalog.places import Storage
from lab_backup.security.sealed import seal, unseal


def passphrase_of(storage: Storage, master_key: bytes) -> str | None:
    """Return what opens a storage's repository; None where it is not encrypted. Raises SealError."""
    return None if storage.passphrase is None else unseal(master_key, storage.passphrase, place=f"storage/{storage.id}")


def keep_passphrase(storage: Storage, passphrase: str | None, master_key: bytes) -> None:
    """Seal a passphrase into the row, which has its id already."""
    storage.passphrase = None if passphrase is None else seal(master_key, passphrase, place=f"storage/{storage.id}")
