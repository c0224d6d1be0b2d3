"""What there is to back up on a host."""

from lab_backup.sources.libvirt.inventory import FoundVm, list_vms
from lab_backup.sources.podman.inventory import Found, FoundContainer, list_all, list_containers

__all__ = ["Found", "FoundContainer", "FoundVm", "list_all", "list_containers", "list_vms"]
