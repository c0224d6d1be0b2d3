"""Credentials that rows hold, sealed for their place. Each may be a reference into Vault, which is read when it is used."""

from collections.abc import Mapping

import msgspec

from lab_backup.catalog.places import Storage
from lab_backup.security.sealed import seal, unseal
from lab_backup.security.vault_access import resolved


def passphrase_of(storage: Storage, master_key: bytes) -> str | None:
    """Return what opens a storage's repository; None where it is not encrypted. Raises SealError, VaultError."""
    if storage.passphrase is None:
        return None
    return resolved(unseal(master_key, storage.passphrase, place=f"storage/{storage.id}"))


def keep_passphrase(storage: Storage, passphrase: str | None, master_key: bytes) -> None:
    """Seal a passphrase into the row, which has its id already."""
    storage.passphrase = None if passphrase is None else seal(master_key, passphrase, place=f"storage/{storage.id}")


def credentials_of(storage: Storage, master_key: bytes) -> dict[str, str] | None:
    """Return what opens the storage itself, by the names of the environment; None where it needs none of its own. Raises SealError, VaultError."""
    if storage.credentials is None:
        return None
    kept = unseal(master_key, storage.credentials, place=f"storage-credentials/{storage.id}")
    return {name: resolved(value) for name, value in msgspec.json.decode(kept, type=dict[str, str]).items()}


def keep_credentials(storage: Storage, credentials: Mapping[str, str] | None, master_key: bytes) -> None:
    """Seal credentials into the row, which has its id already."""
    if credentials is None:
        storage.credentials = None
        return
    text = msgspec.json.encode(dict(credentials)).decode()
    storage.credentials = seal(master_key, text, place=f"storage-credentials/{storage.id}")
