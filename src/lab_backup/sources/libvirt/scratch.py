"""Where QEMU puts its NBD socket and its scratch files: places that *it* may write to, under names that are only ours."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab_backup.errors import AccessDeniedError
from lab_backup.sources.libvirt.domain import Disk
from lab_backup.sources.libvirt.errors import HypervisorError
from lab_backup.sources.libvirt.process import QemuProcess

SOCKET_PATH_LIMIT = 107
"""Bytes of a socket's path, without the final zero (unix(7))."""

FALLBACK = Path("/var/tmp")  # noqa: S108  libvirt creates the file itself, under a name that nobody can guess
"""Where scratch files go when no disk is a file and no directory was named."""


@dataclass(frozen=True, slots=True)
class SocketPlace:
    """Where the socket will be. `directory` was made for it alone and must be removed, if it is not None."""

    path: Path
    directory: Path | None


def socket_name(token: str) -> str:
    """Return the name of the NBD socket of the backup with `token`."""
    return f"lab-backup-{token}.sock"


def socket_place(token: str, qemu: QemuProcess | None) -> SocketPlace:
    """Choose where the local QEMU process makes the NBD socket.

    libvirt's private directory of that process is best: QEMU may write there whatever user it runs as, and the profiles
    of AppArmor and SELinux allow it. Otherwise it is a new directory that belongs to QEMU's user.
    """
    if qemu is None:
        raise HypervisorError(
            "the QEMU process of the VM is not to be found on this host",
            hint="run in the process namespace of the hypervisor, or connect to it with qemu+ssh://",
        )
    if os.geteuid() not in {0, qemu.uid}:
        raise AccessDeniedError(
            f"QEMU runs as user {qemu.uid}, whose sockets only that user and root may use", hint="run as root"
        )
    if qemu.directory is not None:
        path = qemu.directory / socket_name(token)
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
            return SocketPlace(path, None)
    base = Path("/run") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    directory = base / f"lab-backup-{token}"
    return SocketPlace(directory / "lab-backup-nbd.sock", directory)


def make_directory(directory: Path, qemu: QemuProcess) -> None:
    """Make a directory that only root and the user of `qemu` can enter."""
    directory.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directory, qemu.uid, qemu.gid)


def scratch_files(uuid: str, token: str, disks: Sequence[Disk], directory: Path | None) -> dict[str, Path]:
    """Return the scratch file of each disk by target: in `directory`, else beside the disk, else beside another one."""
    beside = [Path(disk.path).parent for disk in disks if disk.type == "file" and disk.path]
    places = {}
    for disk in disks:
        own = Path(disk.path).parent if disk.type == "file" and disk.path else None
        place = directory or own or next(iter(beside), FALLBACK)
        places[disk.target] = place / f"{_prefix(uuid)}{token}-{disk.target.lower()}.scratch"
    return places


def check_space(directories: set[Path], reserve: int) -> None:
    """Raise HypervisorError where a local directory has less than `reserve` bytes to spare."""
    for directory in directories:
        with suppress(OSError):
            space = os.statvfs(directory)
            if space.f_bavail * space.f_frsize < reserve:
                raise HypervisorError(
                    f"there is too little space for scratch files in {directory}",
                    hint="what the guest overwrites during the backup is kept there; name another directory",
                )


def remove_stale(uuid: str, directories: set[Path]) -> list[Path]:
    """Remove scratch files that dead backups of the VM have left in local `directories`; return those removed.

    Only to be called while the VM has no backup job and we hold the claim on it.
    """
    removed = []
    for directory in directories:
        with suppress(OSError):
            for path in directory.glob(f"{_prefix(uuid)}*.scratch"):
                path.unlink()
                removed.append(path)
    return removed


def _prefix(uuid: str) -> str:
    return f"lab-backup-{uuid.replace('-', '')}-"
