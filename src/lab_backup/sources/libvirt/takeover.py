"""What must be out of the way before a backup begins: a job of somebody else is respected, a dead one of ours is ended."""

from typing import Any

from lab_backup.errors import BusyError
from lab_backup.sources.libvirt import checkpoint, job, overlay, ownership
from lab_backup.sources.libvirt.removal import remove_checkpoint
from lab_backup.sources.libvirt.request import Request


def clear_the_way(domain: Any, request: Request, *, local: bool, watch: float = ownership.WATCH) -> list[str]:
    """Make sure that nothing runs on `domain` but what a dead backup of ours has left, and end that.

    Returns what was done, in words. Raises BusyError where a backup lives, or the VM has a job that is not ours.
    """
    owner = ownership.refuse_if_claimed(domain, watch=watch)
    running = job.running_job(domain)
    done: list[str] = []
    if running is not None:
        if owner is None or not running.holds(owner.token):
            raise BusyError(
                f"a backup job that is not ours runs on VM {domain.name()!r}",
                hint="wait for it, or end it with `virsh domjobabort` if you know that it is dead",
            )
        job.abort(domain)
        done.append(f"ended the job that {owner.describe()} had left")
    elif job.is_busy(domain):
        raise BusyError(f"VM {domain.name()!r} is busy with another job", hint="see `virsh domjobinfo`")
    if local and overlay.find(domain):
        overlay.merge_back(domain)
        done.append("merged back the overlays that a dead backup had left")
    if owner is not None:
        name = checkpoint.checkpoint_name(owner.repository, owner.backup)
        if not _is_needed(name, request):
            remove_checkpoint(domain, name, local=local)
        ownership.write(domain, None)
    return done


def _is_needed(name: str, request: Request) -> bool:
    """Tell whether the backup that left checkpoint `name` was completed after all, and only died tidying up."""
    return request.previous is not None and any(disk.checkpoint == name for disk in request.previous.disks.values())
