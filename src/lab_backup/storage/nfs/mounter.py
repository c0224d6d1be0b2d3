"""Mounting what is not mounted yet, shared by all processes of this host, and unmounted by the last of them."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab_backup.storage.base import StorageAccessError, StorageError, StorageNotFoundError, TransientStorageError
from lab_backup.storage.nfs.address import Address
from lab_backup.storage.nfs.mounts import NFS, MountPoint, covering, mounts

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
        """Return where on this host the address is mounted already, None where it is not, or only by one of us, whom one has to join.

        Raises StorageError where it is mounted in a way that cannot be relied on, or otherwise than the address says.
        """
        others = (mount for mount in mounts() if not Path(mount.path).is_relative_to(self._folder))
        found = covering(others, address.source, port=address.port, kinds=self.kinds)
        if found is None:
            return None
        _refuse_unsafe(found[0], address)
        return Path(found[0].path, *found[1].parts)

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
        # A group of its own: mount(8) leaves the work to a program that it starts, and that would go on when only the former is ended.
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        ) as process:  # fmt: skip
            try:
                _, said = process.communicate(timeout=self._timeout)
            except BaseException as happened:  # a mount that is not waited for must not come late
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel is left to it
                    process.communicate(timeout=self._timeout)
                with suppress(subprocess.TimeoutExpired):
                    unmount(place, self.kinds, self._timeout)
                if not isinstance(happened, subprocess.TimeoutExpired):
                    raise
                raise TransientStorageError(
                    f"{address.url} could not be mounted within {self._timeout:.0f} seconds",
                    hint="check the server and the network",
                ) from None
        if process.returncode == 0 and is_mount(place, self.kinds):
            return
        raise _refused(address, said)


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
                # Where that fails, somebody looks into it at this moment; the next one to leave tries again.
                unmount(self.path, self._kinds, self._timeout)
            except BlockingIOError:
                pass  # others use it
        os.close(use)


def unmount(place: Path, kinds: frozenset[str], timeout: float) -> None:
    """Unmount what is mounted just there, as far as that goes. Raises TimeoutExpired."""
    program = shutil.which("umount", path=_SEARCH)
    if program is not None and is_mount(place, kinds):
        command = [program, str(place)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)


def _refuse_unsafe(mount: MountPoint, address: Address) -> None:
    if any(mount.option(name) is not None for name in ("soft", "softerr", "softreval")):
        raise StorageError(
            f"{address.url} is mounted at {mount.path} as soft: what could not be written may be reported as written",
            hint="mount it as hard",
        )
    wanted, there = address.option("sec"), mount.option("sec")
    if wanted is not None and there is not None and wanted != there:
        raise StorageError(
            f"{address.url} is mounted at {mount.path} with sec={there}, not sec={wanted} as its address says",
            hint="mount it otherwise, or change the address",
        )


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
