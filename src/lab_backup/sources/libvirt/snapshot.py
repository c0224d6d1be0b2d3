"""Backing up a running VM where libvirt cannot export its disks: a temporary overlay takes the guest's writes meanwhile.

The images below do not change then and are read by qemu-nbd. There is no record of changes, so every backup is full.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import libvirt

from lab_backup.errors import UsageError
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.server import QemuNbd
from lab_backup.sources.libvirt import overlay
from lab_backup.sources.libvirt.backup import VmBackup
from lab_backup.sources.libvirt.domain import Disk
from lab_backup.sources.libvirt.errors import LostBackupError, translated
from lab_backup.sources.libvirt.export import VmDisk, WatchedReader, open_reader
from lab_backup.sources.libvirt.guard_process import GuardProcess
from lab_backup.sources.libvirt.plan import DiskPlan
from lab_backup.sources.libvirt.scratch import check_space

REASON = "it is read from below a snapshot, without a record of changes"


class SnapshotBackup(VmBackup):
    """A backup of the images below temporary overlays."""

    def begin(self) -> None:
        """Freeze, put the overlays in place, thaw, and open the images. After an error `close` must be called."""
        self._stack = ExitStack()
        domain = self.clear_the_way()
        self._plans = [_without_bitmap(plan, again=self._request.previous is not None) for plan in self.plan(domain)]
        self._overlays = {disk.target: self._place(disk) for disk in self._chosen}
        guard = self.claim(domain)
        directories = {path.parent for path in self._overlays.values()}
        check_space(directories, self._request.limits.scratch_reserve)
        files = tuple(map(str, self._overlays.values()))
        guard.update(
            guard.left.replace(overlays=True, resume=not self._facts.paused, files=files),
            watched=tuple(map(str, directories)),
        )
        self.frozen(domain, guard, lambda: self._snapshot(domain))
        self.disks = [self._open(disk, plan, guard) for disk, plan in zip(self._chosen, self._plans, strict=True)]

    def check_disks(self, domain: Any) -> None:
        """Raise LostBackupError if the guest stopped, or writes to one of the images again."""
        with translated("see whether the VM still runs"):
            if not domain.isActive():
                raise LostBackupError(f"VM {self._facts.name!r} stopped while it was being backed up")
        current = {item.target: item.path for item in overlay.find(domain)}
        if current != self._overlays:
            raise LostBackupError(f"the disks of VM {self._facts.name!r} were switched while they were being read")

    def let_go(self) -> None:
        """Close the images, so that the overlays can be merged back."""
        super().let_go()
        self._stack.close()

    def _place(self, disk: Disk) -> Path:
        if disk.path is None:
            raise UsageError(
                f"disk {disk.target} of VM {self._facts.name!r} is no file or device of this host",
                hint="only the method `pull` can read it",
            )
        directory = self._request.scratch_directory
        if directory is None:
            directory = Path(disk.path).parent if disk.type == "file" else Path("/var/lib/libvirt/images")
        return directory / overlay.overlay_name(self._facts.uuid, self._owner.token, disk.target)

    def _snapshot(self, domain: Any) -> None:
        others = [
            disk.target for disk in self._facts.disks if disk.device == "disk" and disk.target not in self._overlays
        ]
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        )
        with translated(f"put overlays above the disks of VM {self._facts.name!r}"):
            domain.snapshotCreateXML(overlay.snapshot_xml(self._overlays, others), flags)

    def _open(self, disk: Disk, plan: DiskPlan, guard: GuardProcess) -> VmDisk:
        server = self._stack.enter_context(QemuNbd(Path(disk.path or ""), disk.format))

        def connect(context: str) -> NbdClient:
            return server.connect([context])

        return VmDisk(
            name=disk.target,
            identity=disk.identity,
            format=disk.format,
            checkpoint=None,
            full_reason=plan.reason,
            reader=WatchedReader(open_reader(connect), guard.alive, self.check),
            dirty=None,
        )


def _without_bitmap(plan: DiskPlan, *, again: bool) -> DiskPlan:
    return DiskPlan(plan.name, plan.size, None, REASON if again else None, keeps_bitmap=False)
