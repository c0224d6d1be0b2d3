"""Backing up a VM that is off and whose disks only its hypervisor can open: it is started, but its processor is not."""

import libvirt

from lab_backup.sources.libvirt.domain import Domain
from lab_backup.sources.libvirt.errors import HypervisorError, translated
from lab_backup.sources.libvirt.pull import PullBackup
from lab_backup.sources.source import Consistency


class PausedBackup(PullBackup):
    """A pull-mode backup of a VM that exists only as long as the backup."""

    def begin(self) -> None:
        """Start the VM without letting it run, and export its disks. After an error `close` must be called."""
        domain = self.clear_the_way()
        with translated("look for a saved state of the VM"):
            if domain.hasManagedSaveImage(0):
                raise HypervisorError(
                    f"VM {self._facts.name!r} is saved, and its disks cannot be read from here",
                    hint="start it and back it up while it runs, or run the backup on its host",
                )
        guard = self.claim(domain)
        guard.update(guard.left.replace(destroy=True))
        with translated(f"start VM {self._facts.name!r} without letting it run"):
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        self._facts = Domain.read(domain)
        self._chosen = self._facts.select(self._request.disks)
        self.export(domain, guard)
        self.consistency = Consistency.OFFLINE
        self.notes[:] = [note for note in self.notes if "paused" not in note]
