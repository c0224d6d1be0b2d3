"""Backing up a running VM by libvirt's pull-mode job."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import libvirt

from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.protocol import dirty_bitmap
from lab_backup.sources.libvirt import job, ownership
from lab_backup.sources.libvirt.backup import VmBackup
from lab_backup.sources.libvirt.domain import Disk
from lab_backup.sources.libvirt.errors import HypervisorError, LostBackupError, translate
from lab_backup.sources.libvirt.export import VmDisk, WatchedReader, dirty_extents, open_reader
from lab_backup.sources.libvirt.guard_process import GuardProcess
from lab_backup.sources.libvirt.plan import DiskPlan, check_live
from lab_backup.sources.libvirt.scratch import check_space, remove_stale, scratch_files
from lab_backup.sources.libvirt.transport import Transport, choose

EXPLANATION_LOOKS, EXPLANATION_PAUSE = 10, 0.3
"""How often, and with how many seconds between, libvirt is asked why a read has failed."""

ATTEMPTS = 20
"""How often beginning is tried with another port, beside once for each objection to a bitmap."""

_DISK_IN_MESSAGE = re.compile(r"for disk '?([\w-]+)'?|disk '?([\w-]+)'? ")

_STOPPING = {libvirt.VIR_DOMAIN_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED}

_UNSUPPORTED = {libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED}
_UNUSABLE_BITMAP = {
    libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT,
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
    libvirt.VIR_ERR_INVALID_DOMAIN_CHECKPOINT,
}


class PullUnsupportedError(HypervisorError):
    """This libvirt or QEMU has no pull-mode backups. Nothing was begun."""


class PullBackup(VmBackup):
    """A backup by one job of libvirt's."""

    _transport: Transport | None = None

    def begin(self) -> None:
        """Freeze, begin the job, thaw, and connect to the exports. After an error `close` must be called."""
        domain = self.clear_the_way()
        self.export(domain, self.claim(domain))

    def export(self, domain: Any, guard: GuardProcess) -> None:
        """Begin the job on a running and claimed `domain`, and connect to it."""
        self._plans, self._seen = check_live(domain, self._facts, self.plan(domain), repair=True)
        transport = self._transport = choose(self._hypervisor, domain, self._owner.token, self._request.tls)
        scratch = scratch_files(self._facts.uuid, self._owner.token, self._chosen, self._request.scratch_directory)
        directories = {path.parent for path in scratch.values()} if self._hypervisor.is_local else set()
        remove_stale(self._facts.uuid, directories)
        check_space(directories, self._request.limits.scratch_reserve)
        left = guard.left.replace(
            job=True,
            resume=not self._facts.paused,
            checkpoint=self._checkpoint,
            files=tuple(map(str, (*scratch.values(), *transport.files))),
            directories=tuple(map(str, transport.directories)),
        )
        guard.update(left, watched=tuple(map(str, directories)))
        transport.prepare()
        self.frozen(domain, guard, lambda: self._begin_job(domain, scratch, transport))
        self._claim_again(domain)
        self.disks = [
            self._export(disk, plan, guard.alive, partial(transport.connect, disk.target))
            for disk, plan in zip(self._chosen, self._plans, strict=True)
        ]

    def check_disks(self, domain: Any) -> None:
        """Raise LostBackupError if the guest has stopped, or the job is no longer ours."""
        try:
            if not domain.isActive() or domain.state()[0] in _STOPPING:
                raise LostBackupError(
                    f"VM {self._facts.name!r} stopped while it was being backed up",
                    hint="run the backup again; a VM that is off can be backed up too",
                )
        except libvirt.libvirtError as error:
            raise translate(error, "see whether the VM still runs") from error
        running = job.running_job(domain)
        if running is None or not running.holds(self._owner.token):
            raise LostBackupError(f"the backup job of VM {self._facts.name!r} was ended by somebody else")

    def _begin_job(self, domain: Any, scratch: dict[str, Path], transport: Transport) -> None:
        """Begin; where libvirt objects to a disk's bitmap, do without it, within the same freeze."""
        for _ in range(2 * len(self._plans) + ATTEMPTS):
            try:
                domain.backupBegin(*self._job_xml(scratch, transport.server), 0)
            except libvirt.libvirtError as error:
                if "Address already in use" in error.get_error_message() and transport.another():
                    continue
                self._plans = self._without_trouble(error)
            else:
                return
        raise HypervisorError(f"libvirt refuses every way to back up VM {self._facts.name!r}")

    def _job_xml(self, scratch: dict[str, Path], server: job.UnixServer | job.TlsServer) -> tuple[str, str | None]:
        backed = [job.JobDisk(plan.name, scratch[plan.name], plan.since, plan.keeps_bitmap) for plan in self._plans]
        names = {plan.name for plan in self._plans}
        others = [disk.target for disk in self._facts.disks if disk.device == "disk" and disk.target not in names]
        xml = job.backup_xml(server, backed, others)
        return xml, self.checkpoint_xml()

    def _without_trouble(self, error: Any) -> list[DiskPlan]:
        """Return plans that avoid what libvirt just refused; raise our error where there is no such thing."""
        code, text = error.get_error_code(), str(error.get_error_message())
        match = _DISK_IN_MESSAGE.search(text)
        named = {plan.name for plan in self._plans} & ({match[1] or match[2]} if match else set())
        concerned = named or {plan.name for plan in self._plans}
        if code in _UNUSABLE_BITMAP and any(plan.since for plan in self._plans if plan.name in concerned):
            return [
                plan.full(f"its record of changes cannot be used: {text}")
                if plan.name in concerned and plan.since
                else plan
                for plan in self._plans
            ]
        no_bitmaps = code == libvirt.VIR_ERR_CONFIG_UNSUPPORTED or "bitmap" in text.lower()
        if no_bitmaps and any(plan.keeps_bitmap for plan in self._plans if plan.name in concerned):
            self.notes.append(f"the next backup will read {', '.join(sorted(concerned))} whole: {text}")
            return [
                replace(plan, since=None, keeps_bitmap=False) if plan.name in concerned else plan
                for plan in self._plans
            ]
        if code in _UNSUPPORTED:
            raise PullUnsupportedError(f"this hypervisor cannot export a running VM: {text}", code=code) from error
        raise translate(error, f"begin the backup of VM {self._facts.name!r}") from error

    def _claim_again(self, domain: Any) -> None:
        """Put our claim back should another backup have written its own meanwhile: the job decides, and it is ours."""
        owner = ownership.read(domain)
        if owner is None or owner.token != self._owner.token:
            ownership.write(domain, self._owner)

    def _export(
        self, disk: Disk, plan: DiskPlan, alive: Callable[[], None], connect: Callable[[str], NbdClient]
    ) -> VmDisk:
        dirty = partial(dirty_extents, connect, dirty_bitmap(f"backup-{disk.target}"), self._explain)
        return VmDisk(
            name=disk.target,
            identity=disk.identity,
            format=disk.format,
            checkpoint=self._checkpoint if plan.keeps_bitmap else None,
            full_reason=plan.reason,
            reader=WatchedReader(open_reader(connect), alive, self._explain),
            dirty=None if plan.since is None else dirty,
        )

    def let_go(self) -> None:
        """Close the connections to QEMU."""
        super().let_go()
        if self._transport is not None:
            self._transport.close()

    def _explain(self) -> None:
        """Raise what is really the matter when a read failed; libvirt may notice it a moment later than we do."""
        for _ in range(EXPLANATION_LOOKS):
            self.check()
            time.sleep(EXPLANATION_PAUSE)
