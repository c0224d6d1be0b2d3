"""What firmware and TPM of a VM remember between two starts; libvirt's backup job leaves it out."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import libvirt

from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain import Domain
from lab_backup.sources.libvirt.tpm_state import states_folder
from lab_backup.sources.source import ConfigurationFile
from lab_backup.units import MiB

MAX_SIZE = 64 * MiB
"""Bytes of an NVRAM or of all TPM state files; real ones have less than one MiB."""


def read_nvram(facts: Domain) -> tuple[list[ConfigurationFile], list[str]]:
    """Return the local NVRAM file of a VM that has one, and notes about what could not be read.

    A VM that was never started has none yet, which is fine: it is made from its template.
    """
    if facts.nvram is None:
        return [], []
    try:
        data = _read(Path(facts.nvram))
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        return [], [f"the NVRAM of the VM is not in the backup: {error}"]
    return [ConfigurationFile("nvram", data)], []


def read_remote(hypervisor: Hypervisor, facts: Domain) -> tuple[list[ConfigurationFile], list[str]]:
    """Return the NVRAM of a VM on another host, where it lies in one of libvirt's storage pools, and notes about the rest."""
    notes = ["the state of the TPM is not in the backup: it lies on another host"] if facts.tpm else []
    if facts.nvram is None:
        return [], notes
    connection = hypervisor.connection
    try:
        volume = connection.storageVolLookupByPath(facts.nvram)
        stream = connection.newStream(0)
        volume.download(stream, 0, MAX_SIZE, 0)
        parts: list[bytes] = []
        stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
        stream.finish()
    except libvirt.libvirtError as error:
        reason = f"{facts.nvram} on {hypervisor.name} is in no storage pool ({error.get_error_message()})"
        return [], [*notes, f"the NVRAM of the VM is not in the backup: {reason}"]
    return [ConfigurationFile("nvram", b"".join(parts))], notes


def read_tpm(facts: Domain, uri: str, proc: Path = Path("/proc")) -> tuple[list[ConfigurationFile], list[str]]:
    """Return the state of a VM's emulated TPM as a tar archive of its state folder, and notes about what is missing.

    `uri` is that of its libvirt, on this host.
    """
    if not facts.tpm:
        return [], []
    folder = tpm_folder(facts.uuid, uri, proc)
    if folder is None:
        return [], ["the state of the TPM is not in the backup: its folder is not to be found on this host"]
    try:
        return [ConfigurationFile("tpm.tar", _archive(folder))], []
    except (OSError, ValueError) as error:
        return [], [f"the state of the TPM is not in the backup: {error}"]


def tpm_folder(uuid: str, uri: str, proc: Path = Path("/proc")) -> Path | None:
    """Return the folder `<uuid>` in which swtpm keeps the state of a VM: from its process, else where libvirt has it."""
    for arguments in _swtpm_arguments(proc):
        for argument in arguments:
            path = next((part[4:] for part in argument.split(",") if part.startswith("dir=")), None)
            if path is not None and Path(path).parent.name == uuid:
                return Path(path).parent
    base = states_folder(uri, proc)
    with suppress(OSError):
        if base is not None and (base / uuid).is_dir():
            return base / uuid
    return None


def _swtpm_arguments(proc: Path) -> Iterator[list[str]]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # processes come and go
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if Path(arguments[0]).name == "swtpm":
                    yield arguments


def _archive(folder: Path) -> bytes:
    """Return the regular files below `folder` as a tar archive, with paths relative to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.name == ".lock":
                continue
            data = _read(path)
            member = tarfile.TarInfo(str(path.relative_to(folder)))
            member.size, member.mode, member.mtime = len(data), 0o600, int(path.stat().st_mtime)
            archive.addfile(member, io.BytesIO(data))
            if buffer.tell() > MAX_SIZE:
                raise ValueError(f"{folder} holds more than {MAX_SIZE // MiB} MiB")
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ValueError(f"{path} is larger than {MAX_SIZE // MiB} MiB")
    return data
