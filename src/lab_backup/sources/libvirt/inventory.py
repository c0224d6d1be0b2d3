"""What VMs a host has."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.errors import translated

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
KIB = 1024


@dataclass(frozen=True, slots=True)
class FoundVm:
    """A VM of a host. `memory` and `disk_size`, of all disks that it sees, in bytes."""

    name: str
    uuid: str
    vcpus: int
    memory: int
    disk_size: int
    state: str


def list_vms(connect: str) -> list[FoundVm]:
    """Return the VMs of the host `connect`, by name. Raises LabBackupError where it cannot be asked."""
    with Hypervisor(connect) as hypervisor, translated("list the VMs"):
        found = []
        for domain in hypervisor.connection.listAllDomains():
            try:
                state, most, _, vcpus, _ = domain.info()
                found.append(
                    FoundVm(
                        domain.name(),
                        domain.UUIDString(),
                        vcpus,
                        most * KIB,
                        _disk_size(domain),
                        STATES.get(state, "unknown"),
                    )
                )
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # it went away meanwhile
                    raise
        return sorted(found, key=lambda vm: vm.name)


def _disk_size(domain: Any) -> int:
    """Return the size of all its disks; one whose file is out of reach counts as nothing."""
    size = 0
    for disk in fromstring(domain.XMLDesc(0)).iterfind("./devices/disk[@device='disk']"):
        target = disk.find("target")
        if target is not None:
            with suppress(libvirt.libvirtError):
                size += int(domain.blockInfo(target.get("dev", ""))[0])
    return size
