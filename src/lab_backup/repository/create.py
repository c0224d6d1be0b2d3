"""Making a repository in an empty storage."""

import secrets
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from lab_backup.errors import UsageError
from lab_backup.repository import config as config_object
from lab_backup.repository.codec import compressor
from lab_backup.repository.config import DEFAULT_CHUNK_SIZE, DEFAULT_GRACE, Config, check_chunk_size
from lab_backup.repository.errors import RepositoryExistsError
from lab_backup.repository.head import has_traces
from lab_backup.repository.keys import (
    KeyFile,
    RepositoryKeys,
    Secret,
    keeper_slot,
    key_file_slot,
    passphrase_slot,
    plain_slot,
)
from lab_backup.repository.repository import RESERVE, RESERVE_SIZE
from lab_backup.repository.unlock import KEYS
from lab_backup.storage.base import NoSpaceError, ObjectExistsError, ObjectNotFoundError, StorageBackend


def create_repository(
    storage: StorageBackend,
    *,
    passphrase: Secret | None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    compression: str = "zstd:3",
    grace: int = DEFAULT_GRACE,
    identity: bytes | None = None,
) -> Config:
    """Make a new repository in the empty `storage` and return its config. No passphrase, key file or keeper of keys means no encryption.

    `identity` takes another repository's identity key, so that equal chunks have equal ids in both. Before the object `config` exists there
    is no repository; only its copy comes later. Raises RepositoryExistsError, UsageError where the storage holds something else.
    """
    check_chunk_size(chunk_size)
    compressor(compression)
    _check_empty(storage)
    keys = RepositoryKeys.generate()
    if identity is not None:
        keys = RepositoryKeys(keys.master, identity)
    repository_id = secrets.token_hex(16)
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if passphrase is None:
        slot = plain_slot(keys, created=created)
    elif isinstance(passphrase, KeyFile):
        slot = key_file_slot(keys, passphrase, repository_id, label="first key file", created=created)
    elif not isinstance(passphrase, str):
        slot = keeper_slot(keys, passphrase, repository_id, label="first key", created=created)
    else:
        slot = passphrase_slot(keys, passphrase, repository_id, label="first passphrase", created=created)
    config = Config(
        format=config_object.FORMAT, version=config_object.VERSION, id=repository_id, created=created,
        encryption="none" if passphrase is None else "aes-256-gcm", chunk_size=chunk_size, compression=compression, grace=grace,
    ).sealed(keys.metadata)  # fmt: skip
    _write(
        storage,
        {
            f"{KEYS}/{slot.id}": msgspec.json.encode(slot),
            RESERVE: secrets.token_bytes(RESERVE_SIZE),
            config_object.PATH: config.encode(),
            config_object.COPY: config.encode(),
        },
    )
    return config


def _check_empty(storage: StorageBackend) -> None:
    present = next(iter(storage.list()), None)
    if present is None:
        return
    if _exists(storage, config_object.PATH):
        raise RepositoryExistsError(
            f"{storage.url} is a repository already", hint="use it as it is, or choose another place"
        )
    if _exists(storage, config_object.COPY):
        raise RepositoryExistsError(
            f"{storage.url} is a repository already, whose object `config` is lost",
            hint="use it as it is: its copy suffices, and the next backup or gc writes `config` again",
        )
    if has_traces(storage):
        raise RepositoryExistsError(
            f"{storage.url} holds objects of a repository whose `config` and `config.copy` are gone",
            hint="bring one of them back from another copy of the repository",
        )
    if all(info.path == RESERVE or info.path.startswith(f"{KEYS}/") for info in storage.list()):
        raise UsageError(
            f"{storage.url} holds what is left of a repository whose making was interrupted",
            hint="nothing is in it: if nobody is making it at this moment, remove the content of the place and try again",
        )
    raise UsageError(
        f"{storage.url} is not empty: it holds {present.path}", hint="choose an empty place for the repository"
    )


def _exists(storage: StorageBackend, path: str) -> bool:
    try:
        storage.stat(path)
    except ObjectNotFoundError:
        return False
    return True


def _write(storage: StorageBackend, objects: dict[str, bytes]) -> None:
    """Store the objects in their order; where somebody else makes a repository here as well, take back what is ours."""
    made: list[str] = []
    try:
        for path, data in objects.items():
            storage.create(path, data)
            made.append(path)
    except NoSpaceError:
        _take_back(storage, objects, made)
        raise
    except ObjectExistsError as error:
        _take_back(storage, objects, made)
        raise _taken(storage) from error
    # Where `create` is a look followed by an upload, the other one may have replaced ours. Then his making holds.
    if storage.read(config_object.PATH) != objects[config_object.PATH]:
        _take_back(storage, objects, made)
        raise _taken(storage)


def _taken(storage: StorageBackend) -> RepositoryExistsError:
    return RepositoryExistsError(f"{storage.url} was made a repository by somebody else this very moment")


def _take_back(storage: StorageBackend, objects: dict[str, bytes], made: list[str]) -> None:
    for path in reversed(made):
        with suppress(ObjectNotFoundError):
            if storage.read(path) == objects[path]:
                storage.delete(path)
