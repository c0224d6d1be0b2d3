"""Bringing one volume back as a new one: out of a backup of the volume, of its container, or of its pod."""

import time

import msgspec

from lab_backup.errors import NotFoundError, TargetExistsError, UsageError
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.restore_container import ContainerResult, compared, saved_container
from lab_backup.operations.restore_pod import saved_pod
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import Manifest, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.saved import VOLUME, SavedVolume, SavedVolumeSource, volume_name
from lab_backup.sources.podman.volume import lies_elsewhere, make, remove
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget

KIND = "volume"


def restore_volume(
    repository: Repository,
    backup: Backup,
    volume: str | None = None,
    *,
    connect: str,
    to: str,
    devices: bool = False,
    progress: Progress | None = None,
) -> ContainerResult:
    """Make one volume of `backup` again as the new volume `to`; `volume` may be left out where the backup holds only one.

    A failure leaves no new volume behind. Raises TargetExistsError where there is one of that name, NotFoundError, UsageError, DamagedError, PodmanError.
    """
    begun = time.monotonic()
    shown = progress or Silent()
    reader = Reader(repository)
    chosen, tree = _choose(backup.manifest, saved_volumes(reader, backup.manifest), volume)
    with Podman(connect) as podman:
        if not podman.is_local:
            raise UsageError("a volume can be restored on its own host only", hint="run lab-backup there")
        if podman.exists(f"volumes/{name_in_path(to)}"):
            raise TargetExistsError(f"there is a volume {to} already", hint="choose another name")
        shown.start(None, f"restoring volume {chosen.name} as {to}")
        folder = make(podman, chosen, to)
        try:
            stored = StoredFileTree(reader, tree)
            with FileTreeTarget(folder, devices=devices) as target:
                restore_tree(stored, target)
                target.finish()
                warnings = list(target.warnings)
            found = [] if warnings else compared(stored, folder, f"volume {to}")
        except BaseException:
            remove(podman, to)
            raise
    told = (*warnings, *([f"not as it was in the backup: {', '.join(found)}"] if found else []))
    notes: tuple[str, ...] = ()
    if lies_elsewhere(chosen):
        said = ", ".join([f"driver {chosen.driver}", *(f"{key}={value}" for key, value in chosen.options.items())])
        notes = (f"{to} is a folder on this host; the files of {chosen.name} were elsewhere ({said})",)
    return ContainerResult(
        backup=backup.id, source=backup.manifest.source.name, container="", id="", started=False, volumes=(to,), networks=(), image_loaded=False,
        conflicts=(), replaces=(), differences=tuple(found), duration_seconds=time.monotonic() - begun, warnings=told, notes=notes,
    )  # fmt: skip


def saved_volumes(reader: Reader, manifest: Manifest) -> tuple[SavedVolume, ...]:
    """Return the volumes that the backup knows of. Raises UsageError for a backup of something else, DamagedError."""
    if manifest.source.kind == "pod":
        members = saved_pod(reader, manifest).members
        found = [volume for name in members for volume in saved_container(reader, manifest, name).volumes]
        return tuple({volume.name: volume for volume in found}.values())
    if manifest.source.kind != KIND:
        return saved_container(reader, manifest).volumes
    entry = manifest.file(VOLUME)
    if entry is None:
        raise DamagedError(f"backup {manifest.backup[:12]} does not hold the volume's settings", hint="it was forged")
    try:
        return (msgspec.json.decode(reader.read_file(entry), type=SavedVolumeSource).volume,)
    except msgspec.MsgspecError as error:
        raise DamagedError(f"{VOLUME} of backup {manifest.backup[:12]} cannot be understood") from error


def _choose(manifest: Manifest, volumes: tuple[SavedVolume, ...], name: str | None) -> tuple[SavedVolume, TreeEntry]:
    held = {volume.name: volume for volume in volumes if manifest.file_tree(volume_name(volume.name)) is not None}
    known = ", ".join(held) or "none"
    if name is None and len(held) != 1:
        raise UsageError(f"the backup holds {len(held)} volumes", hint=f"say which one: {known}")
    chosen = next(iter(held.values())) if name is None else held.get(name)
    tree = None if chosen is None else manifest.file_tree(volume_name(chosen.name))
    if chosen is None or tree is None:
        raise NotFoundError(f"the backup has no volume {name}", hint=f"its volumes: {known}")
    return chosen, tree
