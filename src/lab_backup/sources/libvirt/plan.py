"""Which disks can be read incrementally, and why not the others."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lab_backup.sources.libvirt import bitmap, checkpoint
from lab_backup.sources.libvirt.domain import Disk, Domain
from lab_backup.sources.libvirt.errors import HypervisorError, translated
from lab_backup.sources.source import Previous
from lab_backup.units import format_size


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How one disk will be read. `bytes_to_read` is None where only the job itself can tell.

    `since` is the checkpoint that an incremental one builds on; `reason` says why the disk is read whole although there
    is a previous backup; `keeps_bitmap` whether the next one may be incremental.
    """

    name: str
    size: int
    since: str | None
    reason: str | None
    keeps_bitmap: bool
    bytes_to_read: int | None = None

    @property
    def kind(self) -> str:
        """`full` or `incremental`."""
        return "full" if self.since is None else "incremental"

    def full(self, reason: str) -> "DiskPlan":
        """Return the same plan, but reading the whole disk because of `reason`."""
        return replace(self, since=None, reason=reason, bytes_to_read=None)


def sizes(domain: Any, disk: Disk) -> tuple[int, int]:
    """Return the capacity of a disk and the bytes that it occupies.

    libvirt calls the latter `physical` while QEMU has the disk open, and `allocation` where it looks by itself.
    """
    with translated(f"ask for the size of disk {disk.target}"):
        capacity, allocation, physical = domain.blockInfo(disk.target)
        return int(capacity), int(physical if domain.isActive() else allocation)


def decide(disk: Disk, size: int, facts: Domain, previous: Previous | None, *, full: bool) -> DiskPlan:
    """Return how to read `disk`, as far as the previous backup and the definition can tell."""
    plan = DiskPlan(disk.target, size, None, None, disk.has_bitmaps and facts.persistent)
    if previous is None:
        return plan
    reason = "a full backup was asked for" if full else _obstacle(disk, size, facts, previous)
    if reason is not None:
        return plan.full(reason)
    return replace(plan, since=previous.disks[disk.target].checkpoint)


def _obstacle(disk: Disk, size: int, facts: Domain, previous: Previous) -> str | None:
    """Return why `disk` cannot build on `previous`, or None where nothing speaks against it so far."""
    if previous.source_id != facts.uuid:
        return f"the previous backup is of another VM ({previous.source_id})"
    before = previous.disks.get(disk.target)
    if before is None:
        return "the disk is not in the previous backup"
    obstacles = {
        "another disk has this name now": not disk.was(before.identity),
        f"the disk was resized from {format_size(before.size)} to {format_size(size)}": before.size != size,
        f"{disk.format} disks keep no record of changes": not disk.has_bitmaps,
        "a transient VM keeps no record of changes": not facts.persistent,
        "the previous backup left no checkpoint for it": before.checkpoint is None,
    }
    return next((text for text, applies in obstacles.items() if applies), None)


def check_live(
    domain: Any, facts: Domain, plans: Sequence[DiskPlan], *, repair: bool
) -> tuple[list[DiskPlan], dict[str, dict[str, bitmap.Bitmap]] | None]:
    """Look at the bitmaps of a running VM and let those disks fall back to full that have no usable one.

    With `repair`, a checkpoint that libvirt has forgotten but whose bitmaps are there is defined again. Returns the
    plans, and QEMU's bitmaps by disk and name where QEMU had to be asked, because something was amiss.
    """
    seen: dict[str, dict[str, bitmap.Bitmap]] | None = None
    result = {plan.name: plan for plan in plans}
    for name in sorted({plan.since for plan in plans if plan.since is not None}):
        users = [plan for plan in plans if plan.since == name]
        known = checkpoint.find(domain, name)
        problem = checkpoint.validate(domain, name)
        if problem is None and known is not None:
            covered = checkpoint.describe(known).disks
            for plan in users:
                if plan.name not in covered:
                    result[plan.name] = plan.full(f"checkpoint {name} does not cover it")
            continue
        if seen is None:
            seen = bitmap.live(domain, facts.disks)
        for plan in users:
            found = seen[plan.name].get(name)
            if found is None:
                result[plan.name] = plan.full("its record of changes is gone")
            elif not found.usable:
                result[plan.name] = plan.full("its record of changes was left open when QEMU was killed")
        usable = {plan.name: True for plan in users if result[plan.name].since is not None}
        if known is None and usable and repair:
            _define_again(domain, name, facts, usable, result)
    return [result[plan.name] for plan in plans], seen


def _define_again(
    domain: Any, name: str, facts: Domain, usable: Mapping[str, bool], result: dict[str, DiskPlan]
) -> None:
    disks = {disk.target: usable.get(disk.target, False) for disk in facts.disks if disk.device == "disk"}
    xml = checkpoint.checkpoint_xml(name, "found again by Lab Backup", disks, created=int(time.time()))
    try:
        checkpoint.redefine(domain, xml, validate_bitmaps=True)
    except HypervisorError as error:
        for target in usable:
            result[target] = result[target].full(f"its record of changes cannot be used: {error}")
