"""Opening the repository that a command works on."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lab_backup.cli.passphrase import VARIABLE, read_passphrase
from lab_backup.cli.printing import tell
from lab_backup.errors import LabBackupError, UsageError
from lab_backup.units import parse_size

if TYPE_CHECKING:
    from lab_backup.repository.keys import KeyFile, Secret
    from lab_backup.repository.repository import Repository
    from lab_backup.storage.metered import StorageMetrics

CACHE = "LAB_BACKUP_CACHE"
"""Environment variable: the folder for local copies of indexes, in place of `~/.cache/lab-backup`."""

LIMIT_RATE = "LAB_BACKUP_LIMIT_RATE"
"""Environment variable: bytes a second, such as `20MiB`, that may go to and come from a storage; or `@FILE` that says so."""

METRICS = "LAB_BACKUP_METRICS"
"""Environment variable: a file that gets what the storage was asked and what it took, as Prometheus reads it."""

KEY_FILE_VARIABLE = "LAB_BACKUP_KEY_FILE"
"""Environment variable: the key file to open repositories with, where no passphrase is given."""
TRANSIT_VARIABLE = "LAB_BACKUP_VAULT_TRANSIT"
"""Environment variable: the transit key of Vault (`mount/key`) to open them with, where neither is given."""

KV_VARIABLE = "LAB_BACKUP_VAULT_KV"
"""Environment variable: where in Vault's KV engine the passphrase is (`mount/path#field`), where none of these is given."""


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that the user wants for caches, or None for the usual one."""
    given = environment.get(CACHE)
    return Path(given) if given else None


def limit_rate(environment: Mapping[str, str]) -> "Callable[[], int | None] | None":
    """Return what tells the bytes a second that the user allows, None where he sets no limit.

    `@FILE` is read again whenever the file changes: so the limit of a running command can be changed. A file that cannot be read or understood
    later leaves the limit as it was; an empty one lifts it. Raises UsageError for what is no limit from the start.
    """
    given = environment.get(LIMIT_RATE)
    if not given:
        return None
    if given.startswith("@"):
        return RateFile(Path(given[1:])).rate
    rate = _parse_rate(given)
    return lambda: rate


def _parse_rate(text: str) -> int:
    rate = parse_size(text)
    if rate <= 0:
        raise UsageError(f"{LIMIT_RATE}={text} would let nothing through", hint="write such as 20MiB")
    return rate


class RateFile:
    """A file whose first line says how many bytes a second may pass."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises UsageError where it cannot be read or understood."""
        self._path = path
        try:
            self._changed = path.stat().st_mtime_ns
            self._rate = self._read()
        except OSError as error:
            raise UsageError(f"the file {path} in {LIMIT_RATE} cannot be read: {error.strerror}") from error

    def rate(self) -> int | None:
        """Return the bytes a second that it says now, None for all."""
        with suppress(OSError, UsageError):
            changed = self._path.stat().st_mtime_ns
            if changed != self._changed:
                self._rate = self._read()
                self._changed = changed
        return self._rate

    def _read(self) -> int | None:
        # Not to wait for a pipe's other end, neither now nor while everything waits for the limit.
        number = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, errors="replace") as file:  # noqa: PTH123  a Path cannot open a descriptor
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise UsageError(f"{self._path} in {LIMIT_RATE} is no plain file")
            text = file.readline(100).strip()
        return _parse_rate(text) if text else None


def _about_cache(directory: Path, error: OSError) -> LabBackupError | None:
    """Return what to say where it was the cache in `directory` that failed; None where it was something else."""
    name = error.filename
    if not isinstance(name, str) or not Path(name).is_relative_to(directory):
        return None
    return LabBackupError(
        f"the local copy of the index cannot be kept in {directory}: {error.strerror}",
        hint=f"set {CACHE} to a folder that this user may write to",
    )


def given_secret(
    passphrase_file: Path | None,
    *,
    variable: str = VARIABLE,
    option: str = "--passphrase-file",
    prompt: str = "Passphrase",
    read_key: "Callable[[Path], KeyFile] | None" = None,
) -> "Secret | None":
    """Return what the user gave to open a repository with, None where that is nothing.

    The first of: the passphrase in `passphrase_file` or `variable`; the key file
    (read by `read_key`), Vault's transit key, and the passphrase in Vault's KV engine. Raises UsageError, AccessDeniedError, VaultError.
    """
    if passphrase_file is not None or os.environ.get(variable):
        return read_passphrase(passphrase_file, variable=variable, option=option, prompt=prompt)
    if key_file := os.environ.get(KEY_FILE_VARIABLE):
        from lab_backup.cli.key_file import read_key_file

        return (read_key or read_key_file)(Path(key_file))
    if key := os.environ.get(TRANSIT_VARIABLE):
        from lab_backup.security.vault_access import transit

        return transit(key, os.environ)
    if where := os.environ.get(KV_VARIABLE):
        from lab_backup.security.vault_access import passphrase

        return passphrase(where, os.environ)
    return None


@contextmanager
def opened(
    url: str,
    passphrase_file: Path | None,
    *,
    variable: str = VARIABLE,
    option: str = "--passphrase-file",
    prompt: str = "Passphrase",
) -> Iterator["Repository"]:
    """Open the repository at `url`, asking for the passphrase only if it has one: by `prompt`, or from `variable` or `passphrase_file`.

    One that was given in a file or the environment counts even where the repository says that it has none: somebody who can write the
    storage could say so, and read what we write from then on. The engine then refuses.
    """
    from lab_backup.operations.repositories import default_cache_directory, needs_passphrase, open_repository

    directory = cache_directory() or default_cache_directory()
    passphrase = given_secret(passphrase_file, variable=variable, option=option, prompt=prompt)
    if passphrase is None and needs_passphrase(url):
        passphrase = read_passphrase(None, variable=variable, option=option, prompt=prompt)
    with _metrics(os.environ.get(METRICS)) as metrics:
        try:
            repository = open_repository(
                url,
                passphrase=passphrase,
                cache_directory=directory,
                limit_rate=limit_rate(os.environ),
                metrics=metrics,
            )
        except OSError as error:
            explained = _about_cache(directory, error)
            if explained is None:
                raise
            raise explained from error
        with repository:
            yield repository


_running: "list[StorageMetrics]" = []
"""The metrics of the command that is running, if it has any."""


@contextmanager
def _metrics(file: str | None) -> "Iterator[StorageMetrics | None]":
    """Give metrics, and write them to `file` at the end, whatever happened. Without a file there are none.

    A command that opens two repositories has one set of metrics for both.
    """
    if not file or _running:
        yield _running[0] if _running else None
        return
    from prometheus_client import CollectorRegistry, write_to_textfile

    from lab_backup.storage.metered import StorageMetrics

    registry = CollectorRegistry()
    _running.append(StorageMetrics(registry))
    try:
        yield _running[0]
    finally:
        _running.clear()
        try:
            write_to_textfile(file, registry)
        except OSError as error:
            tell("warning", f"the metrics cannot be written to {file}: {error.strerror}")
