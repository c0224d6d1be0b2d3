"""Backups of libvirt's VMs: the source that `lab_backup.sources.source` describes."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.sources.libvirt import checkpoint
from lab_backup.sources.libvirt.backup import VmBackup
from lab_backup.sources.libvirt.connection import Hypervisor, shown
from lab_backup.sources.libvirt.domain import Disk, Domain, left_out
from lab_backup.sources.libvirt.errors import translated
from lab_backup.sources.libvirt.firmware import read_nvram, read_remote, read_tpm
from lab_backup.sources.libvirt.guard_process import GuardProcess, Limits
from lab_backup.sources.libvirt.offline import OfflineBackup, check_images, is_possible
from lab_backup.sources.libvirt.paused import PausedBackup
from lab_backup.sources.libvirt.plan import DiskPlan, check_live, decide, sizes
from lab_backup.sources.libvirt.pull import PullBackup, PullUnsupportedError
from lab_backup.sources.libvirt.request import Method, Request
from lab_backup.sources.libvirt.snapshot import SnapshotBackup
from lab_backup.sources.source import ConfigurationFile, Consistency, DiskExport, OpenSource, Previous, Quiesce


def identify_vm(name: str, connect: str) -> tuple[str, str]:
    """Return the UUID and name of the VM that is called `name`, or whose UUID that is. Raises NotFoundError."""
    with Hypervisor(connect) as hypervisor:
        domain = hypervisor.find(name)
        with translated("identify the VM"):
            return domain.UUIDString(), domain.name()


def open_vm(
    name: str,
    *,
    connect: str,
    repository_id: str,
    backup_id: str,
    disks: Sequence[str] = (),
    quiesce: Quiesce = Quiesce.AUTO,
    full: bool = False,
    previous: Previous | None = None,
    scratch_directory: Path | None = None,
    tls: TlsCredentials | None = None,
    method: Method = Method.AUTO,
    limits: Limits | None = None,
) -> OpenSource:
    """Return the VM as a source; entering it freezes the point in time, leaving it takes everything back.

    Raises, on entering, NotFoundError (VM, disk), UsageError, AccessDeniedError, BusyError (somebody else's job),
    QuiesceError, HypervisorError; nothing is left behind then.
    """
    request = Request(
        repository_id=repository_id,
        backup_id=backup_id,
        disks=tuple(disks),
        quiesce=quiesce,
        full=full,
        previous=previous,
        scratch_directory=scratch_directory,
        tls=tls,
        method=method,
        limits=limits or Limits(),
    )
    return VmSource(name, connect, request)


def plan_vm(
    name: str,
    *,
    connect: str,
    disks: Sequence[str] = (),
    full: bool = False,
    previous: Previous | None = None,
) -> list[DiskPlan]:
    """Return how each disk would be read now; changes nothing. Raises what `open_vm` does before it begins."""
    with Hypervisor(connect) as hypervisor:
        domain = hypervisor.find(name)
        facts = Domain.read(domain)
        chosen = facts.select(disks)
        allocated = {disk.target: sizes(domain, disk) for disk in chosen}
        plans = [decide(disk, allocated[disk.target][0], facts, previous, full=full) for disk in chosen]
        if facts.running:
            plans, _ = check_live(domain, facts, plans, repair=False)
        elif hypervisor.is_local and is_possible(chosen):
            plans = check_images(chosen, plans)
        changed = {
            (name, target): size
            for name in {plan.since for plan in plans if plan.since is not None}
            for target, size in _changed(domain, name).items()
        }
        return [
            replace(
                plan,
                bytes_to_read=changed.get((plan.since, plan.name)) if plan.since else min(allocated[plan.name]),
            )
            for plan in plans
        ]


class VmSource:
    """An open VM. Use it as a context manager."""

    kind = "vm"

    def __init__(self, name: str, connect: str, request: Request) -> None:
        """Remember what is to be done; entering does it."""
        self.configuration: list[ConfigurationFile] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.host = shown(connect)
        self._wanted = name
        self._connect = connect
        self._request = request
        self._hypervisor: Hypervisor | None = None
        self._open: tuple[Domain, VmBackup] | None = None

    @property
    def source_id(self) -> str:
        """The VM's UUID."""
        return self._opened[0].uuid

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._opened[0].name

    @property
    def consistency(self) -> Consistency:
        """What was reached."""
        return self._opened[1].consistency

    @property
    def disks(self) -> list[DiskExport]:
        """The disks in this backup, in the order of the definition."""
        return list(self._opened[1].disks)

    def check(self) -> None:
        """Raise LostBackupError if the disks are no longer what they were when the source was entered."""
        self._opened[1].check()

    def commit(self) -> None:
        """Keep the new checkpoints, now that the backup is durable."""
        self._opened[1].commit()

    def __enter__(self) -> Self:
        guard = GuardProcess(self._wanted)  # it gets ready while we look around
        try:
            hypervisor = self._hypervisor = Hypervisor(self._connect)
            domain = hypervisor.find(self._wanted)
            facts = Domain.read(domain)
            disks = facts.select(self._request.disks)
            self.notes += left_out(facts)
            way = _way(facts, disks, self._request.method, local=hypervisor.is_local)
            try:
                self._begin(facts, way(hypervisor, facts, disks, self._request, guard))
            except PullUnsupportedError as error:
                if (
                    self._request.method is Method.PULL
                    or not hypervisor.is_local
                    or any(disk.encrypted for disk in disks)
                ):
                    raise
                self._leave()
                guard = GuardProcess(self._wanted)
                self.notes.append(f"read from below a snapshot: {error}")
                self._begin(facts, SnapshotBackup(hypervisor, facts, disks, self._request, guard))
            self.configuration = self._configuration(facts, hypervisor)
        except BaseException:
            self.__exit__()
            if not guard.watches:
                guard.finish()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leave()
        if self._hypervisor is not None:
            self._hypervisor.close()
            self._hypervisor = None

    def _leave(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @property
    def _opened(self) -> tuple[Domain, VmBackup]:
        if self._open is None:
            raise RuntimeError("the source is not open")
        return self._open

    def _begin(self, facts: Domain, backup: VmBackup) -> None:
        # The lists are shared: what happens while the source is open is known before the backup is published.
        backup.warnings, backup.notes = self.warnings, self.notes
        self._open = facts, backup
        backup.begin()

    def _configuration(self, facts: Domain, hypervisor: Hypervisor) -> list[ConfigurationFile]:
        files = [ConfigurationFile("domain.xml", facts.xml.encode())]
        if hypervisor.is_local:
            results = [read_nvram(facts), read_tpm(facts, hypervisor.uri)]
        else:
            results = [read_remote(hypervisor, facts)]
        for found, notes in results:
            files += found
            self.notes += notes
        return files


def _way(facts: Domain, disks: list[Disk], method: Method, *, local: bool) -> type[VmBackup]:
    """Return how to read `disks` of the VM, given its state and whether its images are within our reach."""
    if method is Method.SNAPSHOT and facts.running:
        if any(disk.encrypted for disk in disks):
            raise UsageError(
                f"a disk of VM {facts.name!r} is encrypted below the guest, and the method `snapshot` reads its image",
                hint="use the method `pull`",
            )
        if not local:
            raise UsageError(
                f"VM {facts.name!r} is not on this host, and the method `snapshot` reads its images",
                hint="run the backup on the VM's host, or use the method `pull`",
            )
        return SnapshotBackup
    if facts.running:
        return PullBackup
    return OfflineBackup if local and is_possible(disks) else PausedBackup


def _changed(domain: Any, name: str) -> dict[str, int]:
    """Return the bytes that changed since the checkpoint `name`, by disk; nothing where libvirt cannot tell now."""
    with suppress(LabBackupError):
        found = checkpoint.find(domain, name)
        if found is not None:
            return dict(checkpoint.describe(found, sizes=True).sizes)
    return {}
