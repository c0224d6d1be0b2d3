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
from lab_backup.sources.libvirt import job, overlay, ownership, quiesce
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.removal import remove_checkpoint

_OURS = re.compile(r"lab-backup-[0-9a-z-]+\.(scratch|sock|overlay)|lab-backup-[0-9a-z]+")


class Leftovers(msgspec.Struct, frozen=True):
    """What must not outlive the backup. Everything named here is, or may be, there.

    `destroy`: the VM was off, and is started but paused. `resume`: should it be stopped by an
    input/output error, as when the scratch space is full, it was running before. `frozen`: the guest was told to freeze and not yet known to be thawed. `job`: a pull job of the claim `token` runs.
    `overlays`: disks of the VM write to temporary overlays of ours.
    `checkpoint`: the one that no committed backup needs. `files` and `directories` carry names of our own making.
    """

    uri: str
    uuid: str
    token: str
    frozen: bool = False
    job: bool = False
    overlays: bool = False
    checkpoint: str | None = None
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    resume: bool = False
    destroy: bool = False

    @property
    def only_frozen(self) -> bool:
        """Whether a guest that may be frozen is all that is left."""
        return self.replace(frozen=False) == Leftovers(self.uri, self.uuid, self.token)

    def replace(self, **changes: Any) -> "Leftovers":
        """Return a copy with `changes`."""
        return msgspec.structs.replace(self, **changes)


def clean_up(hypervisor: Hypervisor, left: Leftovers) -> tuple[Leftovers, list[str]]:
    """Take everything back; return what is still left, and why, in words. The claim itself is left alone."""
    problems: list[str] = []
    try:
        left = _take_back(hypervisor.domain(left.uuid), left, problems, local=hypervisor.is_local)
    except NotFoundError:  # it was undefined, and took everything but files with it
        left = Leftovers(left.uri, left.uuid, left.token, files=left.files, directories=left.directories)
    except LabBackupError as error:
        return left, [str(error)]
    if hypervisor.is_local and not left.job and not left.overlays:
        remove_files(left.files, left.directories)
        left = left.replace(files=(), directories=())
    return left, problems


def _take_back(domain: Any, left: Leftovers, problems: list[str], *, local: bool) -> Leftovers:
    """Undo what was done to `domain`, in an order in which each step depends only on those before it."""
    steps: list[tuple[str, str, Callable[[], None]]] = [
        ("frozen", "thaw the guest", lambda: _thaw(domain)),
        ("job", "end the backup job", lambda: _abort(domain, left.token)),
        ("overlays", "merge the disks back", lambda: overlay.merge_back(domain)),
        ("resume", "resume the guest", lambda: _resume(domain)),
        ("checkpoint", "remove the checkpoint", lambda: remove_checkpoint(domain, left.checkpoint or "", local=local)),
        ("destroy", "stop the VM", lambda: _destroy(domain)),
    ]
    nothing = Leftovers(left.uri, left.uuid, left.token)
    for name, doing, action in steps:
        if not getattr(left, name):
            continue
        if _attempt(problems, doing, action):
            left = left.replace(**{name: getattr(nothing, name)})
        elif name != "frozen":  # an agent that hangs stands in the way of nothing else
            break
    return left


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
    """Let a guest go on that an error has stopped; QEMU then does again what had failed."""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        domain.resume()


def release(hypervisor: Hypervisor, left: Leftovers) -> None:
    """Take the claim off the VM, now that nothing is left; a claim of somebody else stays."""
    with suppress(NotFoundError):
        ownership.release(hypervisor.domain(left.uuid), left.token)
