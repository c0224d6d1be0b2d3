"""What every source promises to the backup operation. `tests/contract/test_sources.py` checks it on each of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from lab_backup.blocks import BlockReader
from lab_backup.extent import Extent


class Consistency(StrEnum):
    """How far a backup is from a clean shutdown, best first."""

    OFFLINE = "offline"  # nothing was running
    APPLICATION = "application"  # applications were told to flush (guest hooks, VSS)
    FILESYSTEM = "filesystem"  # file systems were frozen
    CRASH = "crash"  # as if the power had failed
    FUZZY = "fuzzy"  # read while it was written to: each file as it was at another moment


class Quiesce(StrEnum):
    """What to do about the guest agent: use it if it answers, insist on it, or leave it alone."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class PreviousDisk:
    """A disk as the previous backup saw it. `identity` is opaque; equal identities mean the same disk."""

    name: str
    size: int
    identity: str
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Previous:
    """The backup that an incremental one may build on: the newest of this source in this very repository."""

    backup_id: str
    source_id: str
    disks: Mapping[str, PreviousDisk] = field(default_factory=dict)


class DiskExport(Protocol):
    """One disk of an open source, frozen at the backup's point in time."""

    @property
    def name(self) -> str:
        """The disk's name inside its source, such as `vda`."""
        ...

    @property
    def identity(self) -> str:
        """What tells this disk from another one that later takes its name."""
        ...

    @property
    def format(self) -> str:
        """The format it has at its source (`raw`, `qcow2` ...), for the restore's default."""
        ...

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that this backup leaves for the next one to build on; None where the disk cannot have one."""
        ...

    @property
    def incremental(self) -> bool:
        """Whether `changed` is less than the whole disk, to be laid over the previous backup."""
        ...

    @property
    def full_reason(self) -> str | None:
        """Why the disk is read whole although a previous backup exists, in words for the user; else None."""
        ...

    @property
    def reader(self) -> BlockReader:
        """The disk's content; open as long as the source is."""
        ...

    def changed(self) -> Iterator[Extent]:
        """Return what may differ from the previous backup, sorted; the whole disk where `incremental` is false.

        Runs marked zero are known to read as zeroes now.
        """
        ...


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A small file that belongs to the source: `domain.xml`, `nvram`, `tpm.tar`. `data` is stored whole."""

    name: str
    data: bytes


class OpenSource(Protocol):
    """A source between freezing its point in time and the end of the backup; a context manager.

    Leaving it by an exception, or without `commit`, takes back everything that opening did: the guest runs, and no
    job, export, scratch file, checkpoint or socket remains. Killing the process has the same effect within seconds.
    """

    @property
    def kind(self) -> str:
        """`vm` or `image`."""
        ...

    @property
    def source_id(self) -> str:
        """What identifies the source for ever: the VM's UUID; for an image its name."""
        ...

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def host(self) -> str:
        """Where it was when it was backed up: a libvirt URI or a host name, without secrets."""
        ...

    @property
    def consistency(self) -> Consistency:
        """What was reached."""
        ...

    @property
    def disks(self) -> list[DiskExport]:
        """The disks in this backup, in the source's order."""
        ...

    @property
    def configuration(self) -> list[ConfigurationFile]:
        """Everything besides the disks that a restore needs."""
        ...

    @property
    def warnings(self) -> list[str]:
        """What the user should know, complete when the source is closed; not the mere absence of a guest agent."""
        ...

    @property
    def notes(self) -> list[str]:
        """What is good to know but no cause for concern."""
        ...

    def check(self) -> None:
        """Raise if the export is no longer the point in time that was promised (job gone, guest killed, lease lost)."""
        ...

    def commit(self) -> None:
        """Tell the source that the backup is durable: the new checkpoints stay, those that they replace go."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
