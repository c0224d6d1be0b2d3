"""Backing up a VM that is off: its images are read by qemu-nbd, which also keeps the VM from starting meanwhile.

A checkpoint of such a VM is a new bitmap in each image, and libvirt being told of it. The bitmap is added before the
image is read: should anything be written in between, the next backup reads it once more.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lab_backup.errors import LabBackupError
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.protocol import dirty_bitmap
from lab_backup.nbd.server import QemuNbd
from lab_backup.sources.libvirt import bitmap, checkpoint
from lab_backup.sources.libvirt.backup import VmBackup
from lab_backup.sources.libvirt.domain import Disk
from lab_backup.sources.libvirt.errors import HypervisorError, LostBackupError
from lab_backup.sources.libvirt.export import VmDisk, WatchedReader, dirty_extents, open_reader
from lab_backup.sources.libvirt.guard_process import GuardProcess
from lab_backup.sources.libvirt.plan import DiskPlan
from lab_backup.sources.source import Consistency


def is_possible(disks: list[Disk]) -> bool:
    """Tell whether all of `disks` are plain files or devices, which qemu-nbd can open without libvirt's knowledge.

    What is encrypted below the guest can be read in the clear only through QEMU, which libvirt gives the secret.
    """
    return all(disk.path is not None and not disk.encrypted for disk in disks)


def check_images(disks: list[Disk], plans: list[DiskPlan]) -> list[DiskPlan]:
    """Let those disks fall back to full whose image holds no usable bitmap."""
    paths = {disk.target: disk.path for disk in disks}
    result = []
    for plan in plans:
        path = paths[plan.name]
        if plan.since is None or path is None:
            result.append(plan)
            continue
        found = bitmap.in_image(Path(path)).get(plan.since)
        if found is None:
            result.append(plan.full("its record of changes is gone"))
        elif not found.usable:
            result.append(plan.full("its record of changes was left open when QEMU was killed"))
        else:
            result.append(plan)
    return result


class OfflineBackup(VmBackup):
    """A backup of the images of a VM that is off."""

    def begin(self) -> None:
        """Add the new bitmaps and open the images. After an error `close` must be called."""
        self._stack = ExitStack()
        domain = self.clear_the_way()
        disks = self._chosen
        self._plans = check_images(disks, self.plan(domain))
        guard = self.claim(domain)
        guard.update(guard.left.replace(checkpoint=self._checkpoint))
        self._plans = [self._mark(disk, plan) for disk, plan in zip(disks, self._plans, strict=True)]
        self._define_checkpoint(domain)
        self.disks = [self._open(disk, plan, guard) for disk, plan in zip(disks, self._plans, strict=True)]
        self.consistency = Consistency.OFFLINE
        if domain.hasManagedSaveImage(0):
            self.consistency = Consistency.CRASH
            self.notes.append("crash-consistent: the VM is saved, and what its memory holds is not in the backup")

    def check_disks(self, domain: Any) -> None:
        """Raise LostBackupError if the VM runs."""
        if domain.isActive():
            raise LostBackupError(f"VM {self._facts.name!r} was started while it was being backed up")

    def let_go(self) -> None:
        """Close the images, so that bitmaps can be removed and the VM can start."""
        super().let_go()
        self._stack.close()

    def _mark(self, disk: Disk, plan: DiskPlan) -> DiskPlan:
        """Add the new bitmap to the image of `disk`; where it cannot have one, the next backup of it will be full."""
        if not plan.keeps_bitmap or disk.path is None:
            return plan
        try:
            bitmap.add_to_image(Path(disk.path), self._checkpoint)
        except HypervisorError as error:
            self.notes.append(f"the next backup will read {disk.target} whole: {error}")
            return replace(plan, keeps_bitmap=False)
        return plan

    def _define_checkpoint(self, domain: Any) -> None:
        xml = self.checkpoint_xml(created=int(time.time()))
        if xml is None:
            return
        try:
            checkpoint.redefine(domain, xml, validate_bitmaps=False)
        except LabBackupError as error:
            # the bitmaps stay, and a running VM's checkpoint is found again by them
            self.notes.append(f"libvirt did not take note of the checkpoint: {error}")

    def _open(self, disk: Disk, plan: DiskPlan, guard: GuardProcess) -> VmDisk:
        server = self._stack.enter_context(QemuNbd(Path(disk.path or ""), disk.format, bitmap=plan.since))

        def connect(context: str) -> NbdClient:
            return server.connect([context])

        dirty = partial(dirty_extents, connect, dirty_bitmap(plan.since or ""), self.check)
        return VmDisk(
            name=disk.target,
            identity=disk.identity,
            format=disk.format,
            checkpoint=self._checkpoint if plan.keeps_bitmap else None,
            full_reason=plan.reason,
            reader=WatchedReader(open_reader(connect), guard.alive, self.check),
            dirty=None if plan.since is None else dirty,
        )
