"""What a restore of a VM will do: the values that planning decides and writing and defining follow."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORMATS = ("qcow2", "raw")


@dataclass(frozen=True, slots=True)
class SavedDisk:
    """A disk in the backup: its target name, and the format that it had."""

    name: str
    format: str


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. At most one of `directory` and `pool`; `format` is None for the one that each disk had."""

    name: str | None = None
    overwrite: bool = False
    directory: Path | None = None
    pool: str | None = None
    format: str | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to write at `written`, which gets the name `path` when the VM is defined; `old` is what it replaces.

    It belongs to `owner` (user and group id; None: to us) with `mode`.
    """

    written: Path
    path: Path
    old: Path | None
    owner: tuple[int, int] | None
    mode: int


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk of the restored VM: the `file` to write, in which `format`."""

    target: str
    format: str
    file: PlannedFile


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do. `replaces` says in words what will be gone; it is empty where nothing is overwritten.

    A `remote` plan's files are on the hypervisor's host, and are made as volumes of `pool`.
    """

    name: str
    uuid: str
    xml: str
    disks: tuple[PlannedDisk, ...]
    nvram: PlannedFile | None
    tpm: PlannedFile | None
    current: str | None
    pool: str | None
    remote: bool
    replaces: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def files(self) -> Iterator[PlannedFile]:
        """Return every file to write, and last the folder with the TPM's state."""
        yield from (disk.file for disk in self.disks)
        yield from (item for item in (self.nvram, self.tpm) if item is not None)


def safe_name(name: str) -> str:
    """Return `name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-")[:100] or "vm"


def with_format(name: str, form: str) -> str:
    """Return the file name with a suffix that does not contradict the format."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{form}" if stem and suffix in FORMATS and suffix != form else name
