"""libvirt's pull-mode backup job: QEMU exports the disks, as they were when the job began, over NBD.

https://libvirt.org/formatbackup.html
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.sources.libvirt.errors import HypervisorError, translate, translated

ABORT_TIMEOUT = 60.0
"""Seconds for a job to end after it was told to; QEMU finishes requests that are under way."""


@dataclass(frozen=True, slots=True)
class JobDisk:
    """What the job does for one disk. `since` is the checkpoint to compare with; None exports it without a bitmap.

    `scratch` takes what the guest overwrites while the job runs: at worst as much as the disk holds.
    """

    target: str
    scratch: Path
    since: str | None
    checkpoint: bool

    @property
    def bitmap(self) -> str:
        """The name under which its dirty bitmap is exported."""
        return f"backup-{self.target}"


@dataclass(frozen=True, slots=True)
class UnixServer:
    """QEMU serves NBD on a socket of its host."""

    path: Path


@dataclass(frozen=True, slots=True)
class TlsServer:
    """QEMU serves NBD over TLS on a TCP port, with the certificates that libvirt's qemu.conf names for backups."""

    host: str
    port: int


def backup_xml(server: UnixServer | TlsServer, disks: Sequence[JobDisk], others: Sequence[str] = ()) -> str:
    """Return the job's XML; `others` are disks of the VM that take no part."""
    root = Element("domainbackup", mode="pull")
    if isinstance(server, UnixServer):
        SubElement(root, "server", transport="unix", socket=str(server.path))
    else:
        SubElement(root, "server", transport="tcp", name=server.host, port=str(server.port), tls="yes")
    listed = SubElement(root, "disks")
    for disk in disks:
        element = SubElement(listed, "disk", name=disk.target, backup="yes", type="file", exportname=disk.target)
        if disk.since is None:
            element.set("backupmode", "full")
        else:
            element.set("backupmode", "incremental")
            element.set("incremental", disk.since)
            element.set("exportbitmap", disk.bitmap)
        SubElement(element, "scratch", file=str(disk.scratch))
    for target in others:
        SubElement(listed, "disk", name=target, backup="no")
    return tostring(root, encoding="unicode")


@dataclass(frozen=True, slots=True)
class RunningJob:
    """The backup job of a domain, whoever began it: its NBD socket and scratch files."""

    socket: Path | None
    scratch: tuple[Path, ...]

    def holds(self, token: str) -> bool:
        """Tell whether this is the job of the claim with `token`: each of its files is named after it."""
        return any(token in path.name for path in (self.socket, *self.scratch) if path is not None)


def running_job(domain: Any) -> RunningJob | None:
    """Return the backup job of a virDomain, or None."""
    try:
        root = fromstring(domain.backupGetXMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID}:
            return None
        raise translate(error, "look for a running backup job") from error
    server = root.find("server")
    socket = None if server is None else server.get("socket")
    files = (element.get("file") for element in root.iterfind("disks/disk/scratch"))
    return RunningJob(Path(socket) if socket else None, tuple(Path(file) for file in files if file))


def is_busy(domain: Any) -> bool:
    """Tell whether the domain has any job: a backup, a migration, a save. Beginning another would block, then fail."""
    with translated("see what the VM is doing"):
        return bool(domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)


def abort(domain: Any, *, timeout: float = ABORT_TIMEOUT) -> None:
    """End the backup job of `domain` and wait until it is gone; no error where there is none.

    The call may return before QEMU's block jobs have ended, so it is repeated.
    """
    deadline = time.monotonic() + timeout
    while running_job(domain) is not None:
        try:
            domain.abortJob()
        except libvirt.libvirtError as error:
            if time.monotonic() > deadline:
                raise translate(error, "end the backup job") from error
        if time.monotonic() > deadline:
            raise HypervisorError(f"the backup job did not end within {timeout:.0f} s", hint="try `virsh domjobabort`")
        time.sleep(0.05)
