"""Removing checkpoints, wherever their bitmaps are: in a running QEMU, or in the images of a VM that is off."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab_backup.errors import NotFoundError
from lab_backup.sources.libvirt import bitmap, checkpoint
from lab_backup.sources.libvirt.checkpoint import Checkpoint
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain import Domain


def remove_checkpoint(domain: Any, name: str, *, local: bool) -> None:
    """Remove checkpoint `name` of a virDomain with its bitmaps; no error where there is none of either.

    The images of a VM that is off are touched only where they are `local`. On another host their bitmap stays, which
    costs a little space, until the VM runs again and the next backup finds it.
    """
    facts = Domain.read(domain)
    if facts.running:
        checkpoint.delete(domain, name)
        return
    for disk in facts.disks if local else ():
        if disk.has_bitmaps and not disk.excluded and disk.path and Path(disk.path).exists():
            bitmap.remove_from_image(Path(disk.path), name)
    checkpoint.forget(domain, name)


def list_checkpoints(hypervisor: Hypervisor, vm: str) -> list[Checkpoint]:
    """Return our checkpoints of the VM called `vm`, oldest first. Raises NotFoundError."""
    return checkpoint.list_all(hypervisor.find(vm))


def remove_checkpoints(hypervisor: Hypervisor, vm: str, names: Sequence[str]) -> None:
    """Remove checkpoints of ours from the VM called `vm`; the next backup that would have built on one is full.

    Raises NotFoundError before anything is removed, where the VM or one of the checkpoints is not there.
    """
    domain = hypervisor.find(vm)
    known = {item.name for item in checkpoint.list_all(domain)}
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFoundError(f"VM {vm!r} has no checkpoint {missing[0]!r} of ours")
    for name in names:
        remove_checkpoint(domain, name, local=hypervisor.is_local)
