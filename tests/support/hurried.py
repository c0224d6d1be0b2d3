"""Life on a repository at an hour a second: processes that back up, delete, collect and verify at random, on clocks that are all wrong."""

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

from lab_backup.blocks import Buffer
from lab_backup.errors import LabBackupError
from lab_backup.operations import backup as backing_up
from lab_backup.operations import lifecycle
from lab_backup.operations.collect import collect
from lab_backup.operations.verify import verify
from lab_backup.repository import packer
from lab_backup.repository.backups import Backups
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.packer import Packer
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.repository.session import BackupSession
from lab_backup.storage.base import ObjectInfo, StorageBackend, Usage
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.s3.settings import Connection
from lab_backup.storage.s3.storage import S3Storage
from lab_backup.units import KiB

SPEED = 3600.0
BLOCK = 16 * KiB
POOL = 48  # different blocks, so that most of each image is known
GRACE = 6 * 3600  # seconds of that life: six of ours


class Hurried(StorageBackend):
    """The store `inner`, whose clock runs fast since `began` (seconds since 1970)."""

    def __init__(self, inner: StorageBackend, began: float) -> None:
        """Wrap `inner`, which `close` closes too."""
        self._inner = inner
        self._began = began

    def _fast(self, info: ObjectInfo) -> ObjectInfo:
        since = info.modified.timestamp() - self._began
        return info._replace(modified=datetime.fromtimestamp(self._began + since * SPEED, UTC))

    @property
    def url(self) -> str:
        """The inner store's address."""
        return self._inner.url

    @property
    def concurrency(self) -> int:
        """The inner store's figure."""
        return self._inner.concurrency

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data`."""
        self._inner.upload(path, data, metadata)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` if the name is free."""
        self._inner.create(path, data)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of the object."""
        return self._inner.read(path, offset, length)

    def delete(self, path: str) -> None:
        """Remove the object."""
        self._inner.delete(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects."""
        return map(self._fast, self._inner.list(prefix))

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time."""
        return self._fast(self._inner.stat(path))

    def get_usage(self) -> Usage:
        """Return the space."""
        return self._inner.get_usage()

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()


Place = Path | tuple[str, str, Connection]
"""A folder; or bucket, prefix and how to reach them."""


def open_hurried(place: Place, cache: Path, began: float) -> Repository:
    """Open the repository there."""
    inner: StorageBackend
    if isinstance(place, Path):
        inner = LocalStorage(place)
    else:
        bucket, prefix, connection = place
        inner = S3Storage(bucket, prefix, connection=connection)
    return open_repository(Hurried(RetryingStorage(inner), began), passphrase=None, cache_directory=cache)


def content_of(name: str) -> bytes:
    """Return what the image `name` holds: some of the blocks that all images share."""
    chooser = random.Random(name)
    blocks = [random.Random(number).randbytes(BLOCK) for number in range(POOL)]
    return b"".join(chooser.choice(blocks) for _ in range(24)) + chooser.randbytes(BLOCK)


class _Skewed(datetime):
    """A clock of a host that is days off."""

    skew = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return the wrong time."""
        return cls.fromtimestamp(time.time() + cls.skew.total_seconds(), tz)


def live(place: Place, folder: Path, began: float, until: float, seed: int) -> None:
    """Do one thing after the other until the time `until`; a line in `folder`/log for each, and for each surprise one in `folder`/surprises."""
    chooser = random.Random(seed)
    (Packer.__init__.__kwdefaults__ or {})["pack_size"] = 4 * BLOCK
    packer.PACKS_PER_INDEX = 2
    (BackupSession.__init__.__kwdefaults__ or {})["clock"] = lambda: time.monotonic() * SPEED
    _Skewed.skew = timedelta(hours=chooser.uniform(-100, 100))
    backing_up.datetime = _Skewed  # type: ignore[attr-defined]  # the module's own clock, which is off
    cache = folder / f"cache-{seed % 4}"
    while time.time() < until:
        action = chooser.choices(["backup", "delete", "delete now", "collect", "verify"], [6, 2, 2, 4, 1])[0]
        outcome = "done"
        try:
            with open_hurried(place, cache, began) as repository:
                _act(repository, action, chooser, folder)
        except DamagedError as error:
            outcome = f"{type(error).__name__}: {error}"
            _note(folder / "surprises", f"{action}: {outcome}")
        except LabBackupError as error:  # a race that was lost, something that is gone: told, and nothing is harmed
            outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001  whatever it is, it is a surprise
            _note(folder / "surprises", f"{action}: {type(error).__name__}: {error}")
        _note(folder / "log", f"{action}: {outcome}")


def _act(repository: Repository, action: str, chooser: random.Random, folder: Path) -> None:
    backups = Backups(repository)
    match action:
        case "backup":
            name = str(chooser.randrange(10**9))
            image = folder / f"{name}.raw"
            image.write_bytes(content_of(name))
            try:
                backing_up.backup_image(repository, image, name=name, format="raw")
            finally:
                image.unlink()
        case "delete" | "delete now":
            there = backups.all()
            if len(there) > 3:
                lifecycle.delete(repository, chooser.choice(there).id, now=action == "delete now")
        case "collect":
            collect(repository)
        case "verify":
            found = verify(repository).damage
            # Beside collections a backup may go while we look; what is there must be whole.
            if found and any(backups.exists(touch.split("/")[0]) for damage in found for touch in damage.touches):
                again = verify(repository).damage
                if again:
                    _note(folder / "surprises", f"verify: {again[0]}")


def _note(path: Path, text: str) -> None:
    with suppress(OSError):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(number, f"{text}\n".encode())
        os.close(number)
