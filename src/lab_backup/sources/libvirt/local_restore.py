"""Planning a restore whose files this process writes itself: QEMU runs on this host.

Ownership: QEMU must be able to open the disks. A file that replaces another gets its owner and mode. A new one gets the owner of its
folder if we are root and the folder is not root's (a private libvirt); in root's folders libvirt hands images to QEMU when it starts the
VM (`dynamic_ownership` in qemu.conf, its default).
"""

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab_backup.errors import AccessDeniedError, BusyError, TargetExistsError, UsageError
from lab_backup.sources.libvirt import define, tpm_state
from lab_backup.sources.libvirt.conflicts import Identity
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain_xml import Definition, NewDisk, read_definition, rewrite_for_restore
from lab_backup.sources.libvirt.errors import translated
from lab_backup.sources.libvirt.restore_plan import (
    FORMATS,
    Options,
    PlannedDisk,
    PlannedFile,
    RestorePlan,
    SavedDisk,
    safe_name,
    with_format,
)

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


class LocalPlanner:
    """Plans one restore."""

    def __init__(self, hypervisor: Hypervisor, saved: Definition, options: Options, identity: Identity) -> None:
        self._connection = hypervisor.connection
        self._uri = hypervisor.uri
        self._saved = saved
        self._options = options
        self._name = identity.name
        self._renamed = identity.renamed
        self._domain = identity.replaced
        self._current = identity.current
        self._attached = {} if self._current is None else _local_files(read_definition(self._current))
        self._warnings: list[str] = []
        self._token = secrets.token_hex(4)

    def plan(self, xml: str, disks: Sequence[SavedDisk], *, nvram: bool, tpm: bool) -> RestorePlan:
        """Return the plan; changes nothing."""
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
            terminals=str(folder / safe_name(self._name)),
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
            remote=False,
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
            folder = self._options.directory.resolve()
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
            return PlannedDisk(disk.name, form, self._over(old, old.with_name(with_format(old.name, form))))
        path = self._saved.disks.get(disk.name)
        usual = f"{safe_name(self._name)}-{disk.name}.{form}"
        same = [
            other.name for other in disks if Path(self._saved.disks.get(other.name) or "").name == Path(path or "").name
        ]
        if (
            path is not None
            and not self._renamed
            and len(same) == 1
            and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}", Path(path).name)
        ):
            usual = with_format(Path(path).name, form)
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
        path = usual / f"{safe_name(self._name)}_VARS{suffix}"
        if os.path.lexists(path):  # left by a VM of that name which is gone
            path = usual / f"{safe_name(self._name)}_VARS-{self._token}{suffix}"
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
        if self._current is None:
            return
        new, current = read_definition(xml), read_definition(self._current)
        for target, path in current.disks.items():
            what = path or current.devices.get(target)
            if what and target not in new.disks:
                self._warnings.append(f"disk {target} is no longer attached; it stays as it is: {what}")
            elif target in current.devices and new.devices.get(target) != what:
                self._warnings.append(f"disk {target} is an image file now; what it was stays as it is: {what}")

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


def _local_files(definition: Definition) -> Mapping[str, Path]:
    found = {target: Path(path).resolve() for target, path in definition.disks.items() if path}
    return {target: path for target, path in found.items() if path.is_file()}


def _new(path: Path) -> PlannedFile:
    folder = path.parent.stat()
    owner = (folder.st_uid, folder.st_gid) if os.geteuid() == 0 and folder.st_uid != 0 else None
    return PlannedFile(written=path, path=path, old=None, owner=owner, mode=0o600)
