"""Opening the repository of a storage for a request that cannot wait for a worker."""

from lab_backup.api.context import Context
from lab_backup.catalog.credentials import credentials_of, passphrase_of
from lab_backup.catalog.places import Storage
from lab_backup.operations.repositories import open_repository
from lab_backup.repository.repository import Repository


def opened(storage: Storage, context: Context) -> Repository:
    """Return the open repository; the caller closes it. Takes its time: call it in a thread. Raises LabBackupError."""
    return open_repository(
        storage.url,
        passphrase=passphrase_of(storage, context.master_key),
        cache_directory=context.cache_directory,
        credentials=credentials_of(storage, context.master_key),
    )
