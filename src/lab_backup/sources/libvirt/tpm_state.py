"""Putting the state of an emulated TPM back where libvirt's swtpm looks for it.

It is a folder for each VM, named by its UUID: in `/var/lib/libvirt/swtpm` for the system's libvirt, in the configuration folder of its user
for a session's. libvirt gives the files to swtpm's account whenever it starts the VM, and makes a new TPM only where there is no state.
"""

import io
import os
import re
import shutil
import socket
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lab_backup.errors import LabBackupError
from lab_backup.units import MiB

SYSTEM_FOLDER = Path("/var/lib/libvirt/swtpm")
_MEMBER = re.compile(r"tpm(1\.2|2)/[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}")
_MAX_MEMBERS = 100
_MAX_SIZE = 64 * MiB  # bytes of one; real ones have less than one MiB


class TpmStateError(LabBackupError):
    """The TPM's state in the backup is none, or cannot be put in place."""


def states_folder(uri: str, proc: Path = Path("/proc")) -> Path | None:
    """Return the folder in which the libvirt at a local `uri` keeps the states of all VMs, None where it cannot be told."""
    parts = urlsplit(uri)
    if parts.path != "/session":
        return SYSTEM_FOLDER
    sockets = parse_qs(parts.query).get("socket")
    environment = dict(os.environ)
    if sockets:
        found = _environment_of_server(Path(sockets[0]), proc)
        if found is None:
            return None
        environment = found
    base = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    return Path(base) / "libvirt/qemu/swtpm" if base.startswith("/") and base != "/.config" else None


def _environment_of_server(path: Path, proc: Path) -> dict[str, str] | None:
    """Return the environment of the process that listens on a socket; None where we may not see it."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        probe.connect(str(path))
        pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]  # unix(7)
        entries = (proc / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return None


def unpack_state(folder: Path, archive: bytes) -> Callable[[], None]:
    """Make the new folder with the state in `archive`, a tar of files such as `tpm2/tpm2-00.permall`; return what removes it again.

    It belongs to the owner of the nearest folder above that exists. Raises TpmStateError; then nothing was made.
    """
    files = _members(archive)
    try:
        made = _make(folder)
    except OSError as error:
        raise TpmStateError(
            f"cannot make {folder}: {os.strerror(error.errno or 0)}", hint="run as root, or as the user of that libvirt"
        ) from error
    try:
        owner = made[0].parent.stat()
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            made.append(path.parent)
            path.touch(0o600, exist_ok=False)
            path.write_bytes(data)
            made.append(path)
        if os.geteuid() == 0:
            for path in made:
                os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TpmStateError(f"cannot write {folder}: {os.strerror(error.errno or 0)}") from error
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path) -> list[Path]:
    """Make `folder` and what is missing above it; return what was made, the topmost first."""
    missing = [folder]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == folder else 0o711)
    return missing[::-1]


def _members(archive: bytes) -> dict[str, bytes]:
    """Return the files of the archive, with every name checked: it is input like any other."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and _MEMBER.fullmatch(member.name) else None
                if content is None or member.name in files or member.size > _MAX_SIZE or len(files) >= _MAX_MEMBERS:
                    raise TpmStateError(
                        "the TPM's state in the backup holds what is no state", hint="the backup was forged or damaged"
                    )
                files[member.name] = content.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise TpmStateError(
            "the TPM's state in the backup cannot be read", hint="the backup was forged or damaged"
        ) from error
    return files
