"""What is asked of a backup of a VM."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lab_backup.nbd.tls import TlsCredentials
from lab_backup.sources.libvirt.guard_process import Limits
from lab_backup.sources.source import Previous, Quiesce


class Method(StrEnum):
    """How a running VM is read: by libvirt's backup job, from below a temporary snapshot, or whichever works."""

    AUTO = "auto"
    PULL = "pull"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Request:
    """A backup of one VM into one repository. `disks` are targets such as `vda`; none means all.

    `scratch_directory` is on the hypervisor, writable for its libvirt; by default scratch files lie beside the disks.
    """

    repository_id: str
    backup_id: str
    disks: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    full: bool = False
    previous: Previous | None = None
    scratch_directory: Path | None = None
    tls: TlsCredentials | None = None
    method: Method = Method.AUTO
    limits: Limits = field(default_factory=Limits)
