"""Backups of VMs into memory, by which tests see what a source promises and what it really delivers."""

import select
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab_backup.demo.machine import Guest
from lab_backup.extent import Extent
from lab_backup.sources.libvirt.source import open_vm
from lab_backup.sources.source import Consistency, OpenSource, Previous, PreviousDisk

_PROCESS = Path(__file__).with_name("vm_backup_process.py")


@dataclass(slots=True)
class Taken:
    """What one backup was like. `read` counts bytes per disk, `changed` the runs that the source named."""

    previous: Previous
    consistency: Consistency
    incremental: dict[str, bool]
    reasons: dict[str, str | None]
    read: dict[str, int]
    changed: dict[str, list[Extent]]
    configuration: dict[str, bytes]
    warnings: list[str]
    notes: list[str]


@dataclass(slots=True)
class Repository:
    """A repository of one VM in memory: the newest content of each disk, laid together from full and incremental backups."""

    uri: str
    vm: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    disks: dict[str, bytearray] = field(default_factory=dict)
    newest: Previous | None = None

    def source(self, **options: Any) -> OpenSource:
        """Return the source of the next backup, not yet open."""
        options = {"backup_id": uuid.uuid4().hex[:12], "previous": self.newest} | options
        return open_vm(self.vm, connect=self.uri, repository_id=self.id, **options)

    def back_up(self, *, during: Callable[[OpenSource], object] | None = None, **options: Any) -> Taken:
        """Back the VM up as the engine would, and remember it. `during` runs when the source is open, before reading."""
        options = {"backup_id": uuid.uuid4().hex[:12]} | options
        source = self.source(**options)
        with source:
            if during is not None:
                during(source)
            taken = self._read(source, str(options["backup_id"]))
            source.check()
            source.commit()
        taken.warnings, taken.notes = list(source.warnings), list(source.notes)
        self.newest = taken.previous
        return taken

    def _read(self, source: OpenSource, backup_id: str) -> Taken:
        taken = Taken(Previous(backup_id, source.source_id, {}), source.consistency, {}, {}, {}, {}, {}, [], [])
        known = {}
        for disk in source.disks:
            size = disk.reader.size
            content = self.disks.setdefault(disk.name, bytearray(size)) if disk.incremental else bytearray(size)
            self.disks[disk.name] = content
            taken.changed[disk.name] = list(disk.changed())
            taken.read[disk.name] = 0
            for extent in taken.changed[disk.name]:
                if extent.zero:
                    content[extent.offset : extent.end] = bytes(extent.length)
                else:
                    disk.reader.read_into(extent.offset, memoryview(content)[extent.offset : extent.end])
                    taken.read[disk.name] += extent.length
            known[disk.name] = PreviousDisk(disk.name, size, disk.identity, disk.checkpoint)
            taken.incremental[disk.name] = disk.incremental
            taken.reasons[disk.name] = disk.full_reason
        taken.previous = Previous(backup_id, source.source_id, known)
        taken.configuration = {file.name: file.data for file in source.configuration}
        return taken


def disk_content(path: Path, image_format: str, directory: Path) -> bytes:
    """Return what the guest would read from the image at `path` now, though QEMU may have it open."""
    raw = directory / "content.raw"
    command = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", "--", str(path), str(raw)]
    subprocess.run(command, check=True, timeout=120)
    content = raw.read_bytes()
    raw.unlink()
    return content


def traces(guest: Guest, *directories: Path) -> list[str]:
    """Return what a backup has left of its job: the job itself, the claim, scratch files and sockets, guard processes.

    libvirt's own files about checkpoints (`*.xml`) are none.
    """
    domain = guest.domain
    found = [f"claim: {domain.XMLDesc(0)}"] if "urn:lab-backup:owner" in domain.XMLDesc(0) else []
    if domain.isActive() and domain.jobInfo()[0]:
        found.append(f"job {domain.jobStats()}")
    found += [
        str(path) for directory in directories for path in directory.rglob("lab-backup-*") if path.suffix != ".xml"
    ]
    found += [f"guard {pid}" for pid in guards(guest)]
    return found


def guards(guest: Guest) -> list[int]:
    """Return the guard processes that are running for `guest`."""
    found = []
    for entry in Path("/proc").iterdir():
        arguments = _arguments(entry).split(b"\0")
        if b"lab_backup.sources.libvirt.guard" in arguments and guest.name.encode() in arguments:
            found.append(int(entry.name))
    return found


def _arguments(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def kill_backup_at(repository: Repository, place: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a backup in a process that waits at `place`; it is killed at the end, if the test has not done so."""
    command = [sys.executable, str(_PROCESS), repository.uri, repository.vm, repository.id, "killed", place]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            ready, _, _ = select.select([child.stdout], [], [], 60)
            assert ready, "the backup did not get there"
            assert child.stdout.readline() == b"reached\n"
            yield child
        finally:
            child.kill()
