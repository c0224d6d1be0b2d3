"""Mounting what is not mounted yet, shared by all processes of this host, and unmounted by the last of them."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab_backup.storage.base import StorageAccessError, StorageError, StorageNotFoundError, TransientStorageError
from lab_backup.storage.nfs.address import Address
from lab_backup.storage.nfs.mounts import NFS, covering, mounts

FOLDER = Path("/run/lab-backup/nfs")
_SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
TIMEOUT = 60.0  # seconds for a server to answer; nobody waits longer in front of a terminal


class Mounter:
    """How this host mounts NFS."""

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        program: tuple[str, ...] = ("mount", "-t", "nfs"),
        kinds: frozenset[str] = NFS,
        timeout: float = TIMEOUT,
    ) -> None:
        """Mount below `folder` by `program`, which gets `-o OPTIONS SOURCE PLACE`, within `timeout` seconds; take only mounts of `kinds`."""
        self._folder = folder
        self._program = program
        self.kinds = kinds
        self._timeout = timeout

    def existing(self, address: Address) -> Path | None:
        """Return where on this host the address is mounted already, None where it is not, or only by one of us, whom one has to join."""
        others = (mount for mount in mounts() if not Path(mount.path).is_relative_to(self._folder))
        found = covering(others, address.source, kinds=self.kinds)
        return None if found is None else Path(found[0].path, *found[1].parts)

    def mount(self, address: Address) -> "Mounted":
        """Mount the address, or join those who have. Raises StorageAccessError, StorageNotFoundError, TransientStorageError, StorageError."""
        if os.geteuid() != 0:
            raise StorageAccessError(
                f"{address.url} is not mounted, and only root may mount it",
                hint=f"put it into /etc/fstab ({address.source} /mnt/backups nfs {address.mount_options}) and mount it, then use either address",
            )
        name = hashlib.sha256(f"{address.source} {address.mount_options}".encode()).hexdigest()[:20]
        place = self._folder / name
        with _errors(address):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            with _turn(place):
                # Who uses it shares this lock with the others; who can have it alone is the last.
                use = _open_lock(place, "use")
                try:
                    fcntl.flock(use, fcntl.LOCK_SH)
                    if not is_mount(place, self.kinds):
                        self._mount(address, place)
                except BaseException:
                    os.close(use)
                    raise
        return Mounted(place, use, self.kinds, self._timeout)

    def _mount(self, address: Address, place: Path) -> None:
        program = shutil.which(self._program[0], path=_SEARCH)
        if program is None:
            raise StorageError(f"the program {self._program[0]} is missing", hint="install nfs-common")
        command = [program, *self._program[1:], "-o", address.mount_options, address.source, str(place)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=self._timeout, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TransientStorageError(
                f"{address.url} could not be mounted within {self._timeout:.0f} seconds",
                hint="check the server and the network",
            ) from None
        if done.returncode == 0 and is_mount(place, self.kinds):
            return
        raise _refused(address, done.stderr)


class Mounted:
    """A mount of ours, joined. `path` is where it is."""

    def __init__(self, path: Path, lock: int, kinds: frozenset[str], timeout: float) -> None:
        """Hold the open and locked file `lock`."""
        self.path = path
        self._lock = lock
        self._kinds = kinds
        self._timeout = timeout

    def leave(self) -> None:
        """Let go of it; the last one to do so unmounts it. May be called several times."""
        use, self._lock = self._lock, -1
        if use < 0:
            return
        with suppress(OSError, subprocess.TimeoutExpired), _turn(self.path):
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._unmount()
            except BlockingIOError:
                pass  # others use it
        os.close(use)

    def _unmount(self) -> None:
        program = shutil.which("umount", path=_SEARCH)
        if program is not None and is_mount(self.path, self._kinds):
            # Where that fails, somebody looks into it at this moment; the next one to leave tries again.
            command = [program, str(self.path)]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout, check=False)


def _open_lock(place: Path, name: str) -> int:
    return os.open(
        place.with_name(f"{place.name}.{name}"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )


@contextmanager
def _turn(place: Path) -> Iterator[None]:
    """Be the only one on this host who mounts or unmounts there. Everybody is brief."""
    number = _open_lock(place, "turn")
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def is_mount(path: Path, kinds: frozenset[str]) -> bool:
    """Whether a file system of one of `kinds` is mounted just there."""
    at = [mount for mount in mounts() if mount.path == str(path)]
    return bool(at) and at[-1].kind in kinds


@contextmanager
def _errors(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        kind = StorageAccessError if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} else StorageError
        raise kind(f"there is no place to mount {address.url}: {reason}", hint=f"check {FOLDER}") from error


def _refused(address: Address, said: str) -> StorageError:
    """Return what the words of mount.nfs(8) mean."""
    words = " ".join(said.split())[-300:] or "mount gave no reason"
    text = f"{address.url} cannot be mounted: {words}"
    lower = said.lower()
    if "no such file" in lower or "does not exist" in lower:
        return StorageNotFoundError(text, hint="check the path; the server's exports are in its /etc/exports")
    if "access denied" in lower or "permission denied" in lower or "not permitted" in lower:
        return StorageAccessError(text, hint="export the folder to this host's address on the server")
    if any(word in lower for word in ("timed out", "refused", "unreachable", "no route", "not responding", "busy")):
        return TransientStorageError(text, hint="check the server and the network")
    return StorageError(text, hint="is nfs-common installed, and does this kernel know NFS?")
