"""Which checkpoints are no longer needed once a new backup is durable."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from lab_backup.sources.libvirt import bitmap, checkpoint
from lab_backup.sources.libvirt.checkpoint import Checkpoint
from lab_backup.sources.libvirt.domain import Domain
from lab_backup.sources.libvirt.removal import remove_checkpoint
from lab_backup.sources.libvirt.request import Request

UNUSED_FOR = timedelta(days=30)
"""Age at which a checkpoint of the same repository, which no newest backup builds on, is removed."""


def superseded(
    known: list[Checkpoint], new: str, covered: set[str], present: set[str], repository_id: str, now: datetime
) -> list[str]:
    """Return the checkpoints that the checkpoint `new` of the disks `covered` makes useless.

    Those are the ones of the same repository whose every disk is in `covered`, or no longer in the VM (`present`): the
    newest backup is what the next one builds on. Where other disks need one, it stays until it is old. Checkpoints of
    other repositories are none of our business.
    """
    result = []
    for item in known:
        if item.name == new or not checkpoint.belongs_to(item.name, repository_id):
            continue
        needed = (set(item.disks) & present) - covered
        if not needed or now - item.created > UNUSED_FOR:
            result.append(item.name)
    return result


def retire(
    domain: Any,
    facts: Domain,
    request: Request,
    new: str,
    covered: set[str],
    seen: Mapping[str, Mapping[str, bitmap.Bitmap]] | None,
    *,
    local: bool,
) -> None:
    """Remove the checkpoints that `new` supersedes, and bitmaps `seen` in QEMU that no checkpoint knows any more."""
    known = checkpoint.list_all(domain)
    present = {disk.target for disk in facts.disks}
    gone = superseded(known, new, covered, present, request.repository_id, datetime.now(UTC))
    for name in gone:
        remove_checkpoint(domain, name, local=local)
    if seen is None or not domain.isActive():
        return
    kept = {item.name for item in known} - set(gone) | {new}
    for found in bitmap.live(domain, facts.disks).values():
        for item in found.values():
            if checkpoint.belongs_to(item.name, request.repository_id) and item.name not in kept:
                bitmap.remove_live(domain, item)
