"""What a backup has put on a hypervisor so far, and how it is taken back.

The backup and its guard share this: whoever is left of the two cleans up, and doing it twice does no harm.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from lab_backup.errors import LabBackupError, NotFoundError
from lab_backup.sources.libvirt import job, ownership, quiesce
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.removal import remove_checkpoint

_OURS = re.compile(r"lab-backup-[0-9a-z-]+\.(scratch|sock|overlay)|lab-backup-[0-9a-z]+")


class Leftovers(msgspec.Struct, frozen=True):
    """What must not outlive the backup. Everything named here is, or may be, there.

    `destroy`: the VM was off, and is started but paused. `resume`: it was stopped by an error that is our fault. `frozen`: the guest was told to freeze and not yet known to be thawed. `job`: a pull job of the claim `token` runs.
    `checkpoint`: the one that no committed backup needs. `files` and `directories` carry names of our own making.
    """

    uri: str
    uuid: str
    token: str
    frozen: bool = False
    job: bool = False
    checkpoint: str | None = None
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    resume: bool = False
    destroy: bool = False

    def replace(self, **changes: Any) -> "Leftovers":
        """Return a copy with `changes`."""
        return msgspec.structs.replace(self, **changes)


def clean_up(hypervisor: Hypervisor, left: Leftovers) -> tuple[Leftovers, list[str]]:
    """Take everything back; return what is still left, and why, in words. The claim itself is left alone."""
    problems: list[str] = []
    try:
        domain = hypervisor.domain(left.uuid)
    except NotFoundError:  # it was undefined, and took everything but files with it
        domain = None
    except LabBackupError as error:
        return left, [str(error)]
    if domain is not None:
        if left.frozen and _attempt(problems, "thaw the guest", lambda: _thaw(domain)):
            left = left.replace(frozen=False)
        if left.job and _attempt(problems, "end the backup job", lambda: _abort(domain, left.token)):
            left = left.replace(job=False)
        if left.resume and not left.job and _attempt(problems, "resume the guest", lambda: _resume(domain)):
            left = left.replace(resume=False)
        name = left.checkpoint
        if (
            name is not None
            and not left.job
            and _attempt(
                problems, "remove the checkpoint", lambda: remove_checkpoint(domain, name, local=hypervisor.is_local)
            )
        ):
            left = left.replace(checkpoint=None)
        if (
            left.destroy
            and not left.job
            and left.checkpoint is None
            and _attempt(problems, "stop the VM", lambda: _destroy(domain))
        ):
            left = left.replace(destroy=False)
    if hypervisor.is_local and not left.job:
        remove_files(left.files, left.directories)
        left = left.replace(files=(), directories=())
    return left, problems


def remove_files(files: tuple[str, ...], directories: tuple[str, ...]) -> None:
    """Remove files, then empty directories; none whose name is not of our making, and none that is a link."""
    for path in map(Path, files):
        if _OURS.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
    for path in map(Path, directories):
        if _OURS.fullmatch(path.name):
            with suppress(OSError):
                path.rmdir()


def _attempt(problems: list[str], doing: str, action: Callable[[], None]) -> bool:
    try:
        action()
    except (LabBackupError, libvirt.libvirtError, TimeoutError) as error:
        problems.append(f"could not {doing}: {error or type(error).__name__}")
        return False
    return True


def _thaw(domain: Any) -> None:
    if domain.isActive():
        quiesce.thaw(domain)


def _abort(domain: Any, token: str) -> None:
    running = job.running_job(domain)
    if running is not None and running.holds(token):
        job.abort(domain)


def _destroy(domain: Any) -> None:
    """Stop a VM that never ran; one that somebody has resumed is theirs now."""
    if domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.destroy()


def _resume(domain: Any) -> None:
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        domain.resume()


def release(hypervisor: Hypervisor, left: Leftovers) -> None:
    """Take the claim off the VM, now that nothing is left; a claim of somebody else stays."""
    with suppress(NotFoundError):
        ownership.release(hypervisor.domain(left.uuid), left.token)
