"""The repository's head: the object `config` and its copy, which of them to believe, and what keys they open with.

Either suffices. Who can write the storage could put something of his own in the place of one or both, so neither is believed
before a key that was unlocked under it has verified its seal, and no fallback ever asks for less than the first did.
"""

from dataclasses import dataclass

import msgspec

from lab_backup.errors import LabBackupError
from lab_backup.repository import config as config_object
from lab_backup.repository.config import COPY, PATH, Config
from lab_backup.repository.errors import DamagedError, NewerVersionError, NotARepositoryError, WrongKeyError
from lab_backup.repository.keys import RepositoryKeys, Secret
from lab_backup.repository.unlock import HOW_TO_GIVE, unlock
from lab_backup.storage.base import ObjectNotFoundError, StorageBackend, StorageError, TransientStorageError

BOTH = (PATH, COPY)
MAX_CONFIG = 64 * 1024  # bytes that are read of either
_TRACES = ("manifests", "packs")  # where only a repository that was used has objects


@dataclass(frozen=True, slots=True)
class Head:
    """What was found under both names. `found` holds a Config, not verified, or why there is none."""

    url: str
    found: dict[str, Config | LabBackupError]

    @property
    def configs(self) -> list[Config]:
        """The readable ones, each once, `config` first."""
        return list(dict.fromkeys(config for config in self.found.values() if isinstance(config, Config)))

    @property
    def encrypted(self) -> bool:
        """Whether a key is needed. Where the two disagree, it is: one of them may have been forged to be rid of the question."""
        return any(config.encryption != "none" for config in self.configs)

    def open(self, storage: StorageBackend, secret: Secret | None) -> tuple[Config, RepositoryKeys]:
        """Return the config whose seal verifies, and the keys that did it.

        Raises WrongKeyError where nothing fits, DamagedError, NewerVersionError.
        """
        if secret is None and self.encrypted:
            raise WrongKeyError(f"{self.url} is encrypted", hint=HOW_TO_GIVE)
        failures: list[LabBackupError] = []
        for config in self.configs:
            try:
                keys = unlock(storage, config, secret)
                config.verify(keys.metadata)
                self._refuse_newer(config)
            except (DamagedError, WrongKeyError) as error:
                failures.append(error)
            else:
                return config, keys
        # That something is damaged says more than that no key fits, which it may be the reason of.
        raise next((error for error in failures if isinstance(error, DamagedError)), failures[0])

    def _refuse_newer(self, config: Config) -> None:
        """Raise where the other one was written by a newer version. That only its version is damaged shows in all the rest."""
        for error in self.found.values():
            if isinstance(error, NewerVersionError) and not _is_but_for_version(error, config):
                raise error

    def stale(self, config: Config) -> dict[str, LabBackupError]:
        """Return which of the two are not what the verified `config` is, and why."""
        stale: dict[str, LabBackupError] = {}
        for path, found in self.found.items():
            if isinstance(found, ObjectNotFoundError):
                stale[path] = found
            elif isinstance(found, LabBackupError):
                stale[path] = DamagedError(f"{path} is damaged: {found}")
            elif found != config:
                stale[path] = DamagedError(f"{path} is not what the repository's key has sealed")
        return stale


class _NewerConfigError(NewerVersionError):
    """A config of a newer version, with the fields it has."""

    def __init__(self, error: NewerVersionError, data: bytes) -> None:
        super().__init__(error.message, hint=error.hint)
        self.data = data


def _is_but_for_version(error: NewerVersionError, config: Config) -> bool:
    if not isinstance(error, _NewerConfigError):
        return False
    fields = msgspec.json.decode(error.data, type=dict[str, object])  # it was, a moment ago
    return bool({**fields, "version": config.version} == msgspec.to_builtins(config))


def read_head(storage: StorageBackend) -> Head:
    """Return what is there. Raises NotARepositoryError, NewerVersionError, DamagedError where neither can be read."""
    head = Head(storage.url, {path: _read(storage, path) for path in BOTH})
    if head.configs:
        return head
    first, second = (head.found[path] for path in BOTH)
    # An unreadable one says more than a missing one.
    error = second if isinstance(first, ObjectNotFoundError) else first
    if isinstance(error, LabBackupError) and not isinstance(error, ObjectNotFoundError):
        raise error
    if has_traces(storage):
        raise NotARepositoryError(
            f"{storage.url} holds objects of a repository, but its `config` and `config.copy` are gone",
            hint="bring one of them back from another copy of the repository; a new repository would not hold them",
        )
    raise NotARepositoryError(
        f"{storage.url} is not a repository",
        hint="check the address, and that the storage is mounted; where there never was one, make it: lab-backup repo init",
    )


def stale_configs(storage: StorageBackend, config: Config) -> dict[str, LabBackupError]:
    """Return which of `config` and its copy are not, in the storage, what the verified `config` is, and why."""
    return Head(storage.url, {path: _read(storage, path) for path in BOTH}).stale(config)


def has_traces(storage: StorageBackend) -> bool:
    """Whether there are objects that only a repository has which was used, whatever became of its `config`."""
    return any(next(iter(storage.list(prefix)), None) is not None for prefix in _TRACES)


def _read(storage: StorageBackend, path: str) -> Config | LabBackupError:
    try:
        data = storage.read(path, 0, MAX_CONFIG)
    except TransientStorageError:
        raise
    except StorageError as error:  # where both cannot be read, it is raised
        return error
    try:
        return config_object.decode(data, storage.url)
    except NewerVersionError as error:
        return _NewerConfigError(error, data)
    except (DamagedError, NotARepositoryError) as error:
        return error
