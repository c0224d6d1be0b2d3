"""The checkpoints that backups leave in VMs: looking at them, and removing those that nothing will build on."""

from collections.abc import Sequence

from lab_backup.sources.libvirt import removal
from lab_backup.sources.libvirt.checkpoint import Checkpoint
from lab_backup.sources.libvirt.connection import Hypervisor

__all__ = ["Checkpoint", "list_checkpoints", "remove_checkpoints"]


def list_checkpoints(vm: str, *, connect: str) -> list[Checkpoint]:
    """Return the checkpoints that backups have left in the VM, oldest first. Raises NotFoundError."""
    with Hypervisor(connect) as hypervisor:
        return removal.list_checkpoints(hypervisor, vm)


def remove_checkpoints(vm: str, names: Sequence[str] | None = None, *, connect: str) -> list[str]:
    """Remove checkpoints of ours from the VM, all of them where no `names` are given; return which.

    The next backup that would have built on one is full. No backup is lost. Raises NotFoundError before anything is
    removed.
    """
    with Hypervisor(connect) as hypervisor:
        known = [item.name for item in removal.list_checkpoints(hypervisor, vm)]
        chosen = known if names is None else list(names)
        removal.remove_checkpoints(hypervisor, vm, chosen)
        return chosen
