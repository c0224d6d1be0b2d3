"""The data directory: who owns what in it, and where the service is."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_data_path

from lab_backup.errors import BusyError, LabBackupError, UsageError
from lab_backup.service.account import Account
from lab_backup.settings import DATA, DATABASE, REDIS, Settings, read_settings

ADDRESSES = "service.json"


def default_data_directory() -> Path:
    """Return /var/lib/lab-backup for root, a folder in the home for others."""
    return Path("/var/lib/lab-backup") if os.geteuid() == 0 else user_data_path("lab-backup")


def prepare(folder: Path, account: Account) -> None:
    """Make the data directory: secrets and caches for this user alone, sockets and logs for the servers' account. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if account.uid != os.geteuid():
            _check_way(folder)
        folder.chmod(0o711)
        for name, owner in (("secrets", None), ("cache", None), ("run", account), ("log", account)):
            part = folder / name
            part.mkdir(mode=0o700, exist_ok=True)
            part.chmod(0o700)
            if owner is not None:
                os.chown(part, owner.uid, owner.gid)
    except OSError as error:
        raise UsageError(
            f"the data directory {folder} cannot be made: {error.strerror}", hint="choose another --data-dir"
        ) from error
    # PostgreSQL makes its folder itself, below one that only root may write to.


def _check_way(folder: Path) -> None:
    for above in folder.parents:
        if not above.stat().st_mode & 0o001:
            raise UsageError(
                f"the database, which does not run as root, cannot get through {above} to {folder}",
                hint="choose a --data-dir such as /var/lib/lab-backup",
            )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a second service off the same data directory. Raises BusyError."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                f"a service runs already in {folder}", hint="end it first, or choose another --data-dir"
            ) from error
        yield


def write_addresses(settings: Settings) -> None:
    """Leave a note where database and Redis are, for the commands that a person runs beside the service."""
    path = settings.data_directory / ADDRESSES
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(
            {DATABASE: settings.database_url, REDIS: settings.redis_url, DATA: str(settings.data_directory)}, file
        )
    part.replace(path)


def settings_of(folder: Path | None) -> Settings:
    """Return the settings of the environment, or else those of the service that runs in `folder`. Raises UsageError."""
    if os.environ.get(DATABASE):
        return read_settings()
    path = (folder or default_data_directory()) / ADDRESSES
    try:
        return read_settings(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UsageError(
            f"no service was ever started in {path.parent}",
            hint="start it: lab-backup up; or say where it is by --data-dir",
        ) from error
    except (OSError, ValueError) as error:
        raise LabBackupError(
            f"{path} cannot be read", hint="run this command as the user that runs the service"
        ) from error
