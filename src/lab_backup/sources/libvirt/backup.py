"""What every way of backing up a VM shares: the claim, the guard, keeping the new checkpoint, and tidying up."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import libvirt

from lab_backup.errors import LabBackupError
from lab_backup.sources.libvirt import checkpoint, ownership, quiesce
from lab_backup.sources.libvirt.bitmap import Bitmap
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain import Disk, Domain
from lab_backup.sources.libvirt.errors import HypervisorError, LostBackupError
from lab_backup.sources.libvirt.export import VmDisk
from lab_backup.sources.libvirt.guard_process import GuardProcess
from lab_backup.sources.libvirt.leftovers import Leftovers, clean_up, release
from lab_backup.sources.libvirt.plan import DiskPlan, decide, sizes
from lab_backup.sources.libvirt.request import Request
from lab_backup.sources.libvirt.retirement import retire
from lab_backup.sources.libvirt.takeover import clear_the_way
from lab_backup.sources.source import Consistency

CLEANING_TIMEOUT = 45.0
"""Seconds for cleaning up before the rest is left to the guard; a stopping VM can block libvirt for 30 s."""

CLEANING_PAUSE = 0.5
"""Seconds between two attempts."""


class VmBackup(ABC):
    """One backup of one VM, from its beginning to its end.

    `begin` may fail half way; `close` is called in any case. What is to be undone is known to the guard before it is
    done.
    """

    disks: list[VmDisk]
    _plans: list[DiskPlan]
    _seen: Mapping[str, Mapping[str, Bitmap]] | None

    def __init__(
        self, hypervisor: Hypervisor, facts: Domain, chosen: Sequence[Disk], request: Request, guard: GuardProcess
    ) -> None:
        """Prepare to back up the `chosen` disks; `begin` does it, watched over by `guard`, which `close` ends."""
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.disks = []
        self.consistency = Consistency.CRASH
        self._hypervisor = hypervisor
        self._facts = facts
        self._chosen = list(chosen)
        self._plans = []
        self._request = request
        self._checkpoint = checkpoint.checkpoint_name(request.repository_id, request.backup_id)
        self._owner = ownership.Owner.new(request.repository_id, request.backup_id, now=datetime.now(UTC))
        self._guard = guard
        self._seen = None
        self._committed = False

    @abstractmethod
    def begin(self) -> None:
        """Fix the point in time and open the disks."""

    def check(self) -> None:
        """Raise LostBackupError if the disks are no longer what they were, or are not ours any more."""
        self._guard.alive()
        if (trouble := self._guard.trouble()) is not None:
            raise LostBackupError(f"the backup of VM {self._facts.name!r} was ended: {trouble}")
        self.check_disks(self._hypervisor.domain(self._facts.uuid))
        owner = ownership.read(self._hypervisor.domain(self._facts.uuid))
        if owner is None or owner.token != self._owner.token:
            raise LostBackupError(f"another backup has taken over VM {self._facts.name!r}")

    @abstractmethod
    def check_disks(self, domain: Any) -> None:
        """Raise LostBackupError if the disks of `domain` are not being held as `begin` left them."""

    def commit(self) -> None:
        """Keep the new checkpoint; the one that it replaces goes when the source is closed."""
        self._committed = True
        with suppress(HypervisorError):  # a guard that is gone removes nothing
            self._guard.update(self._guard.left.replace(checkpoint=None))

    def close(self) -> None:
        """End everything and take back what is not to stay. What cannot be done now, the guard goes on trying."""
        self.let_go()
        if not self._guard.watches:
            self._guard.finish()
            return
        destroy = self._guard.left.destroy
        left, problems = self._clean_up(self._guard.left.replace(destroy=False))
        if self._committed and not problems:
            self._retire_checkpoints()
        left, later = self._clean_up(left.replace(destroy=destroy))
        if problems := problems + later:
            self.warnings.extend(f"{problem}; the guard process goes on trying" for problem in problems)
            with suppress(LabBackupError):
                self._guard.update(left)
            self._guard.hand_over()
            return
        self._guard.finish()
        try:
            release(self._hypervisor, left)
        except LabBackupError as error:
            self.warnings.append(f"{error}; the claim on the VM will run out by itself")

    def _clean_up(self, left: Leftovers) -> tuple[Leftovers, list[str]]:
        """Clean up, again and again for a while: a VM that is just stopping lets nobody touch anything."""
        deadline = time.monotonic() + CLEANING_TIMEOUT
        while True:
            left, problems = clean_up(self._hypervisor, left)
            if not problems or left.only_frozen or time.monotonic() > deadline:
                return left, problems
            time.sleep(CLEANING_PAUSE)

    def let_go(self) -> None:
        """Close what this process holds open of the disks."""
        for disk in self.disks:
            disk.reader.close()

    def clear_the_way(self) -> Any:
        """Return the domain, on which no other backup runs now."""
        domain = self._hypervisor.domain(self._facts.uuid)
        self.notes.extend(clear_the_way(domain, self._request, local=self._hypervisor.is_local))
        return domain

    def claim(self, domain: Any) -> GuardProcess:
        """Claim the VM, from when on the guard watches."""
        left = Leftovers(uri=self._hypervisor.uri, uuid=self._facts.uuid, token=self._owner.token)
        self._guard.watch(left, self._request.limits)
        ownership.write(domain, self._owner)
        return self._guard

    def frozen(self, domain: Any, guard: GuardProcess, action: Callable[[], None]) -> None:
        """Do `action` while the guest's file systems are frozen, as far as that was asked for and works."""
        try:
            frozen = quiesce.freeze(
                domain,
                self._request.quiesce,
                self._facts.agent,
                paused=self._facts.paused,
                timeout=self._request.limits.freeze_timeout,
                before=lambda: guard.update(guard.left.replace(frozen=True)),
            )
            self.consistency = frozen.consistency
            self.warnings.extend(filter(None, [frozen.warning]))
            self.notes.extend(filter(None, [frozen.note]))
            action()
        finally:
            if guard.left.frozen:
                self._thaw(domain, guard)

    def _thaw(self, domain: Any, guard: GuardProcess) -> None:
        try:
            thawed = quiesce.thaw(domain)
        except (libvirt.libvirtError, TimeoutError) as error:
            self.warnings.append(
                f"the guest could not be thawed: {error or 'its agent does not answer'}; the guard process goes on trying"
            )
            return
        guard.update(guard.left.replace(frozen=False))
        if thawed == 0 and self.consistency is Consistency.FILESYSTEM:
            self.consistency = Consistency.CRASH
            self.warnings.append("crash-consistent: the guest thawed its file systems before the backup had begun")

    def plan(self, domain: Any) -> list[DiskPlan]:
        """Return how to read the chosen disks, as far as size, definition and previous backup can tell."""
        previous, full = self._request.previous, self._request.full
        return [decide(disk, sizes(domain, disk)[0], self._facts, previous, full=full) for disk in self._chosen]

    def checkpoint_xml(self, *, created: int | None = None) -> str | None:
        """Return the XML of the new checkpoint; None where no disk can be part of it."""
        bitmaps = {disk.target: False for disk in self._facts.disks if disk.device == "disk"}
        bitmaps |= {plan.name: plan.keeps_bitmap for plan in self._plans}
        if not any(bitmaps.values()):
            return None
        text = f"Lab Backup, repository {self._request.repository_id}, backup {self._request.backup_id}"
        return checkpoint.checkpoint_xml(self._checkpoint, text, bitmaps, created=created)

    def _retire_checkpoints(self) -> None:
        covered = {disk.name for disk in self.disks}
        local = self._hypervisor.is_local
        try:
            domain = self._hypervisor.domain(self._facts.uuid)
            retire(domain, self._facts, self._request, self._checkpoint, covered, self._seen, local=local)
        except (LabBackupError, libvirt.libvirtError) as error:
            self.warnings.append(f"an old checkpoint could not be removed: {error}")
