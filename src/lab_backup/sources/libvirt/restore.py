"""Bringing a VM back: everything is decided and checked before a byte is written, and the VM appears only when its disks are whole.

`plan_restore` looks and decides; the caller writes the files where the plan says; `complete` puts them in place and defines the VM, or
undoes what it did. A plan that overwrites lets new files be written beside the old ones, so the old VM stays whole until `complete`.

Ownership: QEMU must be able to open the disks. A file that replaces another gets its owner and mode. A new one gets the owner of its
folder if we are root and the folder is not root's (a private libvirt); in root's folders libvirt hands images to QEMU when it starts the
VM (`dynamic_ownership` in qemu.conf, its default).
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, TargetExistsError, UsageError
from lab_backup.sources.libvirt import define, ownership, tpm_state
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain_xml import (
    Definition,
    NewDisk,
    check_name,
    read_definition,
    rewrite_for_restore,
)
from lab_backup.sources.libvirt.errors import translated
from lab_backup.sources.libvirt.swap import Replacement, Swap

FORMATS = ("qcow2", "raw")
# Folders in which a definition from elsewhere cannot make us put files by default; --directory may still name them.
_SYSTEM_FOLDERS = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
)


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
    """What a restore will do. `replaces` says in words what will be gone; it is empty where nothing is overwritten."""

    name: str
    uuid: str
    xml: str
    disks: tuple[PlannedDisk, ...]
    nvram: PlannedFile | None
    tpm: PlannedFile | None
    current: str | None
    pool: str | None
    replaces: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def files(self) -> Iterator[PlannedFile]:
        """Return every file to write, and last the folder with the TPM's state."""
        yield from (disk.file for disk in self.disks)
        yield from (item for item in (self.nvram, self.tpm) if item is not None)


def plan_restore(
    hypervisor: Hypervisor, xml: str, disks: Sequence[SavedDisk], options: Options, *, nvram: bool, tpm: bool
) -> RestorePlan:
    """Decide everything about the restore of a VM with definition `xml`.

    `nvram` and `tpm` tell whether the backup has its firmware variables and the state of its TPM.
    Changes nothing. Raises TargetExistsError (name, UUID or file taken), BusyError (the VM to overwrite runs, or is being backed up),
    UsageError, NotFoundError (pool), DefinitionError, AccessDeniedError.
    """
    if not hypervisor.is_local:
        raise UsageError(
            f"the disks of a VM at {hypervisor.name} would have to be written on that host",
            hint="run lab-backup there, or restore the disks: lab-backup restore image",
        )
    if options.format not in (None, *FORMATS):
        raise UsageError(f"{options.format!r} is not a format", hint="use qcow2 or raw")
    if options.directory is not None and options.pool is not None:
        raise UsageError("a directory and a pool cannot both be the place", hint="give one of --directory and --pool")
    return _Planner(hypervisor, read_definition(xml), options).plan(xml, disks, nvram=nvram, tpm=tpm)


class _Planner:
    def __init__(self, hypervisor: Hypervisor, saved: Definition, options: Options) -> None:
        connection = hypervisor.connection
        self._connection = connection
        self._uri = hypervisor.uri
        self._saved = saved
        self._options = options
        self._name = check_name(options.name or saved.name)
        self._warnings: list[str] = []
        self._token = secrets.token_hex(4)
        domain = define.find_by_name(connection, self._name)
        self._domain = domain
        if domain is None:
            self._check_uuid()
        elif options.overwrite:
            _check_replaceable(domain, saved.uuid)
        else:
            raise TargetExistsError(
                f"there is a VM {self._name!r} already; it was left as it was",
                hint="give the restored one another --name, or say --overwrite",
            )
        self._renamed = domain is None and self._name != saved.name
        self._current = None if domain is None else define.definition_of(domain)
        self._attached = {} if self._current is None else _local_files(read_definition(self._current))

    def _check_uuid(self) -> None:
        if self._name != self._saved.name:
            return  # it gets a new one
        other = define.find_by_uuid(self._connection, self._saved.uuid)
        if other is not None:
            with translated("look at the VMs"):
                name = other.name()
            raise TargetExistsError(
                f"VM {self._saved.name!r} is there under the name {name!r} (UUID {self._saved.uuid})",
                hint=f"restore it under a new --name, or over that one: --name {name} --overwrite",
            )

    def plan(self, xml: str, disks: Sequence[SavedDisk], *, nvram: bool, tpm: bool) -> RestorePlan:
        folder = self._folder([disk.name for disk in disks])
        planned = tuple(self._disk(disk, folder, disks) for disk in disks)
        variables = self._nvram(folder) if nvram and self._saved.has_nvram else None
        self._check_files([disk.file for disk in planned] + ([variables] if variables else []))
        rewritten = rewrite_for_restore(
            xml,
            name=self._name,
            new_identity=self._renamed,
            disks={disk.target: NewDisk(str(disk.file.path), disk.format) for disk in planned},
            nvram_path=None if variables is None else str(variables.path),
            current=self._current,
            trusted=self._options.trusted,
            terminals=str(folder / _safe(self._name)),
            exists=os.path.exists,
        )
        for network in define.missing_networks(self._connection, self._saved.networks):
            self._warnings.append(f"the network {network!r} is not active here: the VM will not start without it")
        self._warn_of_detached(rewritten.xml)
        state = self._tpm(rewritten.uuid, saved=tpm)
        replaces = tuple(self._replaces(planned, [variables, state]))
        return RestorePlan(
            name=self._name,
            uuid=rewritten.uuid,
            xml=rewritten.xml,
            disks=planned,
            nvram=variables,
            tpm=state,
            current=self._current,
            pool=self._options.pool,
            replaces=replaces,
            warnings=(*rewritten.warnings, *self._warnings),
            notes=rewritten.notes,
        )

    # --- where files go ---

    def _folder(self, targets: Sequence[str]) -> Path:
        """Return where disks go that replace none."""
        if self._options.pool is not None:
            folder = define.pool_folder(self._connection, self._options.pool)
        elif self._options.directory is not None:
            folder = self._options.directory.absolute()
        else:
            folder = self._usual_folder(targets)
        if not folder.is_dir():
            raise UsageError(f"the folder {folder} does not exist", hint="make it first, or name another one")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise AccessDeniedError(
                f"writing to {folder} is not allowed", hint="run as a user who may, or name another --directory"
            )
        return folder

    def _usual_folder(self, targets: Sequence[str]) -> Path:
        for target in targets:
            path = self._saved.disks.get(target)
            if path is not None and path.startswith("/"):
                folder = Path(path).parent.resolve()
                system = folder == Path("/") or any(folder.is_relative_to(place) for place in _SYSTEM_FOLDERS)
                if not system and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
                    return folder
        folder_of_pool = define.default_folder(self._connection)
        if folder_of_pool is None:
            raise UsageError(
                "the folder of the VM's disks is not here, and libvirt has no default storage pool",
                hint="say where the disks should go: --directory",
            )
        return folder_of_pool

    def _disk(self, disk: SavedDisk, folder: Path, disks: Sequence[SavedDisk]) -> PlannedDisk:
        form = self._options.format or (disk.format if disk.format in FORMATS else "qcow2")
        old = self._attached.get(disk.name)
        if old is not None:
            return PlannedDisk(disk.name, form, self._over(old, old.with_name(_with_format(old.name, form))))
        path = self._saved.disks.get(disk.name)
        usual = f"{_safe(self._name)}-{disk.name}.{form}"
        same = [
            other.name for other in disks if Path(self._saved.disks.get(other.name) or "").name == Path(path or "").name
        ]
        if (
            path is not None
            and not self._renamed
            and len(same) == 1
            and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}", Path(path).name)
        ):
            usual = _with_format(Path(path).name, form)
        return PlannedDisk(disk.name, form, _new(folder / usual))

    def _nvram(self, folder: Path) -> PlannedFile:
        current = None if self._current is None else read_definition(self._current).nvram
        if current is not None and Path(current).is_file():
            return self._over(Path(current).resolve(), Path(current).resolve())
        saved = Path(self._saved.nvram or "")
        usual = saved.parent.resolve()
        if (
            not saved.is_absolute()
            or not usual.is_dir()
            or not os.access(usual, os.W_OK | os.X_OK)
            or "nvram" not in usual.parts
        ):
            usual = folder
        suffix = ".qcow2" if saved.suffix == ".qcow2" else ".fd"
        path = usual / f"{_safe(self._name)}_VARS{suffix}"
        if os.path.lexists(path):  # left by a VM of that name which is gone
            path = usual / f"{_safe(self._name)}_VARS-{self._token}{suffix}"
        return _new(path)

    def _tpm(self, uuid: str, *, saved: bool) -> PlannedFile | None:
        if self._saved.tpm is None:
            return None
        folder = tpm_state.states_folder(self._uri)
        if not saved or folder is None:
            why = "the backup does not have it" if not saved else "it is not known where this libvirt keeps it"
            self._warnings.append(
                f"the state of the TPM was not restored: {why}. Keys in it, such as those of BitLocker, are lost"
            )
            return None
        path = folder / uuid
        return PlannedFile(
            written=folder / f".{uuid}.restore-{self._token}",
            path=path,
            old=path if path.is_dir() else None,
            owner=None,
            mode=0o700,
        )

    def _over(self, old: Path, path: Path) -> PlannedFile:
        status = old.stat()
        mine = os.geteuid() != 0 or (status.st_uid, status.st_gid) == (0, 0)
        return PlannedFile(
            written=old.with_name(f"{path.name[:200]}.restore-{self._token}"),
            path=path,
            old=old,
            owner=None if mine else (status.st_uid, status.st_gid),
            mode=status.st_mode & 0o777,
        )

    def _check_files(self, files: Sequence[PlannedFile]) -> None:
        users = define.disk_users(self._connection, self._name)
        for file in files:
            taken = file.path != file.old and os.path.lexists(file.path)
            if taken or os.path.lexists(file.written):
                raise TargetExistsError(
                    f"there is a file {file.path} already; it was left as it was",
                    hint="give another --directory or --name, or move the file away",
                )
            if file.old is not None and file.old in users:
                raise BusyError(
                    f"{file.old} is also a disk of VM {users[file.old]!r}, and would be replaced",
                    hint="restore under a new --name instead",
                )
        if len({file.path for file in files}) != len(files):
            raise UsageError("two disks of the VM would get the same file", hint="give another --directory or --name")

    def _warn_of_detached(self, xml: str) -> None:
        kept = read_definition(xml).disks
        attached = {} if self._current is None else read_definition(self._current).disks
        for target, path in attached.items():
            if path and target not in kept:
                self._warnings.append(f"disk {target} is no longer attached; its file stays: {path}")

    def _replaces(self, disks: Sequence[PlannedDisk], others: Sequence[PlannedFile | None]) -> Iterator[str]:
        if self._current is None:
            return
        yield f"the definition of VM {self._name!r}"
        for disk in disks:
            if disk.file.old is not None:
                yield f"disk {disk.target}: {disk.file.old}"
        for other in others:
            if other is not None and other.old is not None:
                yield f"the memory of its firmware or TPM: {other.old}"
        if self._domain is not None:
            with translated("look at the VM"):
                count, saved = len(self._domain.listAllCheckpoints(0)), self._domain.hasManagedSaveImage()
            if count:
                yield f"{count} checkpoints: the next backup will be a full one"
            if saved:
                yield "its saved memory"


def _check_replaceable(domain: Any, uuid: str) -> None:
    with translated("look at the VM"):
        name, found, active = domain.name(), domain.UUIDString(), domain.isActive()
        persistent, snapshots = domain.isPersistent(), domain.snapshotNum()
    if found != uuid:
        raise TargetExistsError(
            f"VM {name!r} is not the one in the backup: its UUID is {found}, that of the backup {uuid}",
            hint="restore under another --name, or undefine that VM first",
        )
    if active or not persistent:
        raise BusyError(
            f"VM {name!r} is running; it can be overwritten only when it is off",
            hint=f"shut it down first: virsh shutdown {name}",
        )
    if snapshots:
        raise BusyError(
            f"VM {name!r} has {snapshots} snapshots, which would be lost",
            hint="delete them first, or restore under another --name",
        )
    ownership.refuse_if_claimed(domain)


def _local_files(definition: Definition) -> Mapping[str, Path]:
    found = {target: Path(path).resolve() for target, path in definition.disks.items() if path}
    return {target: path for target, path in found.items() if path.is_file()}


def _new(path: Path) -> PlannedFile:
    folder = path.parent.stat()
    owner = (folder.st_uid, folder.st_gid) if os.geteuid() == 0 and folder.st_uid != 0 else None
    return PlannedFile(written=path, path=path, old=None, owner=owner, mode=0o600)


def _safe(name: str) -> str:
    """Return `name` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-")[:100] or "vm"


def _with_format(name: str, form: str) -> str:
    """Return the file name with a suffix that does not contradict the format."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{form}" if stem and suffix in FORMATS and suffix != form else name


def complete(hypervisor: Hypervisor, plan: RestorePlan) -> list[str]:
    """Put the written files in place and define the VM; on any failure everything is as it was before, the written files aside.

    Returns warnings about what could not be tidied up afterwards. Raises BusyError where the VM was started meanwhile, TargetExistsError,
    SwapError, HypervisorError.
    """
    connection = hypervisor.connection
    swap = Swap()
    with ExitStack() as undo:
        undo.callback(swap.undo)
        if plan.current is None:
            _check_still_free(connection, plan)
        else:
            _check_still_off(connection, plan)
        for file in plan.files():
            swap.replace(Replacement(file.written, file.path, file.old))
        domain = define.define(connection, plan.xml, plan.name)
        undo.callback(_take_back, connection, domain, plan)
        if plan.current is not None and domain.isActive():
            raise BusyError(
                f"VM {plan.name!r} was started while it was being overwritten", hint="shut it down and try again"
            )
        undo.pop_all()
    return list(_tidy_up(connection, domain, plan, swap))


def _check_still_free(connection: Any, plan: RestorePlan) -> None:
    if define.find_by_name(connection, plan.name) or define.find_by_uuid(connection, plan.uuid):
        raise TargetExistsError(
            f"a VM {plan.name!r} was defined meanwhile; it was left as it was", hint="restore under another --name"
        )


def _check_still_off(connection: Any, plan: RestorePlan) -> None:
    domain = define.find_by_name(connection, plan.name)
    if domain is None:
        raise BusyError(
            f"VM {plan.name!r} was undefined while it was being overwritten", hint="try again without --overwrite"
        )
    _check_replaceable(domain, plan.uuid)
    if define.definition_of(domain) != plan.current:
        raise BusyError(f"VM {plan.name!r} was changed while it was being overwritten", hint="try again")


def _take_back(connection: Any, domain: Any, plan: RestorePlan) -> None:
    if plan.current is None:
        define.undefine(domain)
    else:
        define.define(connection, plan.current, plan.name)


def _tidy_up(connection: Any, domain: Any, plan: RestorePlan, swap: Swap) -> Iterator[str]:
    for path in swap.commit():
        yield f"the old file {path} could not be removed"
    steps: list[Callable[[], None]] = []
    if plan.current is not None:
        steps += [lambda: define.forget_checkpoints(domain), lambda: define.forget_saved_memory(domain)]
    if plan.pool is not None:
        steps.append(lambda: define.refresh_pool(connection, plan.pool or ""))
    for step in steps:
        try:
            step()
        except LabBackupError as error:
            yield str(error)


def start(hypervisor: Hypervisor, plan: RestorePlan) -> None:
    """Start the restored VM. Raises HypervisorError."""
    define.start(hypervisor.domain(plan.uuid))
