"""What there is to back up on a host."""

from lab_backup.sources.libvirt.inventory import FoundVm, list_vms
from lab_backup.sources.podman.inventory import FoundContainer, list_containers

__all__ = ["FoundContainer", "FoundVm", "list_containers", "list_vms"]
