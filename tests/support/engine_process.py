"""Work on a local repository in processes of their own, which can be killed. They are forked from a small server, so each starts in milliseconds."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lab_backup.operations.backup import backup_image
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import delete
from lab_backup.operations.verify import verify
from lab_backup.repository import packer
from lab_backup.repository.packer import Packer
from lab_backup.repository.repository import Repository, open_repository
from lab_backup.storage.local import LocalStorage
from lab_backup.units import KiB
from support.faulty import CrashPoint, FaultyStorage

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from lab_backup.storage.base import StorageBackend

TIMEOUT = 60.0  # seconds that a process may take
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["support.engine_process"])


def open_local(root: Path, cache: Path, crash: CrashPoint | None = None) -> Repository:
    """Open the repository without encryption at `root`; with `crash` the process dies at that write."""
    local = LocalStorage(root)
    storage: StorageBackend = local if crash is None else FaultyStorage(local, crash=crash)
    return open_repository(storage, passphrase=None, cache_directory=cache)


def back_up_image(root: Path, cache: Path, image: Path, crash: CrashPoint | None = None) -> None:
    """Back up a raw image in packs of 256 KiB, so that there is much to be killed between."""
    (Packer.__init__.__kwdefaults__ or {})["pack_size"] = 256 * KiB
    packer.PACKS_PER_INDEX = 3
    with open_local(root, cache, crash) as repository:
        backup_image(repository, image, name=image.stem, format="raw")


def collect_garbage(root: Path, cache: Path, crash: CrashPoint | None = None) -> None:
    """Collect."""
    with open_local(root, cache, crash) as repository:
        collect(repository)


def delete_now(root: Path, cache: Path, backup: str, crash: CrashPoint | None = None) -> None:
    """Delete a backup for good."""
    with open_local(root, cache, crash) as repository:
        delete(repository, backup, now=True)


def verify_all(root: Path, cache: Path) -> None:
    """Verify every byte; an AssertionError tells of damage."""
    with open_local(root, cache) as repository:
        damage = verify(repository, read_data=True).damage
        assert not damage, damage


class Child:
    """A process that does `work`. A context manager that leaves none behind."""

    def __init__(self, work: Callable[..., None], *args: object) -> None:
        """Start it."""
        self.process: BaseProcess = _context.Process(target=work, args=args, daemon=True)
        self.process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, "the process does not end"
        return self.process.exitcode

    def kill_after(self, seconds: float) -> bool:
        """Kill it that much later, as the kernel's out-of-memory killer would; return whether it was still there."""
        time.sleep(seconds)
        pid = self.process.pid
        assert pid is not None
        if not self.process.is_alive():
            return False
        os.kill(pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


def age(root: Path, *, hours: float) -> None:
    """Make every object below `root`, and every leftover, that much older."""
    for path in root.rglob("*"):
        if path.is_file():
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(hours * 3600e9)))
