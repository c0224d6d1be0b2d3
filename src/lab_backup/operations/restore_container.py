"""Bringing a container back: what stands in the way first, then image, networks, volumes, files, and a look at whether all is as it was."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

import msgspec

from lab_backup.errors import TargetExistsError, UsageError
from lab_backup.filetree import FileTree
from lab_backup.operations.progress import Progress, Silent
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import Manifest, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import StoredFileTree
from lab_backup.repository.stored_stream import StoredStream
from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.sources.podman import image
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.container import users_of
from lab_backup.sources.podman.leftovers import state
from lab_backup.sources.podman.restore import Options, Restoration, RestorePlan
from lab_backup.sources.podman.restore import plan as plan_restore
from lab_backup.sources.podman.saved import CONTAINER, IMAGE, ROOTFS, SavedContainer, layer_name, of_member, volume_name
from lab_backup.targets.files.removal import empty
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget

KIND = "container"
SHOWN = 20  # differences that are named
_ASIDE = "_data.lab-backup-before"


@dataclass(frozen=True, slots=True)
class ContainerResult:
    """What a restore of a container did, or with a dry run would do. `differences` are what is not as it was in the backup."""

    backup: str
    source: str
    container: str
    id: str
    started: bool
    volumes: tuple[str, ...]
    networks: tuple[str, ...]
    image_loaded: bool
    conflicts: tuple[str, ...]
    replaces: tuple[str, ...]
    differences: tuple[str, ...]
    duration_seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def restore_container(
    repository: Repository,
    backup: Backup,
    *,
    connect: str,
    options: Options | None = None,
    start: bool = False,
    devices: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ContainerResult:
    """Make the container of `backup` again at the service `connect`, with image, networks, volumes and files.

    Nothing that exists is touched without `options.overwrite`; a failure removes what was made and puts back what was set aside. `devices`: device
    nodes in volumes as well. With `dry_run` only tells what would be done, and what is in the way.
    Raises TargetExistsError, UsageError, NotFoundError, DamagedError, PodmanError and the errors of targets.
    """
    begun = time.monotonic()
    shown = progress or Silent()
    manifest, reader = backup.manifest, Reader(repository)
    saved = saved_container(reader, manifest)
    with Podman(connect) as podman:
        plan = plan_restore(podman, saved, options or Options())
        if not podman.is_local and manifest.trees:
            plan.conflicts.append("files can be restored on the container's own host only: run lab-backup there")
        for _, name in plan.volumes if plan.replaces else ():
            plan.conflicts += in_use(podman, name, {plan.replaced_container})
        if dry_run:
            return _result(backup, plan, begun)
        for what in plan.replaces:
            shown.note(f"will be replaced: {what}")
        made = Making(podman, reader, manifest, plan, shown, devices=devices)
        with Restoration(podman, plan) as restoration, made:
            made.make(restoration)
            found = made.fill(restoration)
            if start:
                restoration.start()
            made.keep()
            settings = restoration.finish()
            identity = restoration.id
    return _result(
        backup, plan, begun, identity=identity, started=start, found=[*found, *settings], warnings=made.warnings
    )


def _result(
    backup: Backup,
    plan: RestorePlan,
    begun: float,
    *,
    identity: str = "",
    started: bool = False,
    found: list[str] | None = None,
    warnings: list[str] | None = None,
) -> ContainerResult:
    differing = tuple(found or ())
    told = list(warnings or ())
    if differing:
        told.append(f"not as it was in the backup: {', '.join(differing[:SHOWN])}")
    return ContainerResult(
        backup=backup.id,
        source=plan.saved.name,
        container=plan.name,
        id=identity,
        started=started,
        volumes=tuple(name for _, name in plan.volumes),
        networks=tuple(str(body["name"]) for body in plan.networks),
        image_loaded=plan.load_image,
        conflicts=tuple(plan.conflicts),
        replaces=tuple(plan.replaces),
        differences=differing,
        duration_seconds=time.monotonic() - begun,
        warnings=tuple(told),
        notes=tuple(f"a second container cannot have it too: {text}" for text in plan.lost),
    )


def saved_container(reader: Reader, manifest: Manifest, member: str | None = None) -> SavedContainer:
    """Return what the backup says of its container, or of the container `member` of its pod. Raises UsageError for a backup of something else, DamagedError."""
    entry = manifest.file(of_member(CONTAINER, member))
    if manifest.source.kind != (KIND if member is None else "pod") or entry is None:
        raise UsageError(
            f"backup {manifest.backup[:12]} is one of {manifest.source.kind}/{manifest.source.name}, which is no container",
            hint="see: lab-backup show",
        )
    try:
        return msgspec.json.decode(reader.read_file(entry), type=SavedContainer)
    except msgspec.MsgspecError as error:
        raise DamagedError(f"{CONTAINER} of backup {manifest.backup[:12]} cannot be understood") from error


def in_use(podman: Podman, volume: str, replaced: Collection[str | None]) -> list[str]:
    """Return who keeps the volume from being replaced: containers, those with the ids `replaced` aside, that run on with the old files."""
    if not podman.exists(f"volumes/{name_in_path(volume)}"):
        return []
    return [
        f"volume {volume} is in use by {user.name}"
        for user in users_of(podman, volume)
        if user.id not in replaced and state(podman, user.id) in {"running", "paused"}
    ]


class Making:
    """Fills what a restoration makes; a context manager that puts old files back unless they are to be replaced."""

    def __init__(
        self,
        podman: Podman,
        reader: Reader,
        manifest: Manifest,
        plan: RestorePlan,
        shown: Progress,
        *,
        devices: bool,
        member: str | None = None,
        filled: set[str] | None = None,
    ) -> None:
        """Prepare to fill. For a container `member` of a pod, `filled` are the volumes that its pod's others fill already."""
        self._podman = podman
        self._reader = reader
        self._manifest = manifest
        self._plan = plan
        self._shown = shown
        self._devices = devices
        self._member = member
        self._filled = set() if filled is None else filled
        self._there: set[str] = set()
        self._mine: set[str] = set()
        self._aside: list[tuple[Path, Path]] = []
        self.warnings: list[str] = []

    def make(self, restoration: Restoration) -> None:
        """Make everything, empty."""
        self._mine = {name for _, name in self._plan.volumes} - self._filled
        self._filled |= self._mine
        self._there = {name for name in self._mine if self._podman.exists(f"volumes/{name_in_path(name)}")}
        self._shown.start(None, f"restoring {self._plan.name}")
        restoration.make(self._archive() if self._plan.load_image else None)

    def fill(self, restoration: Restoration) -> list[str]:
        """Fill what was made; return what differs from the backup when it is read back."""
        found: list[str] = []
        own = self._manifest.file_tree(of_member(ROOTFS, self._member))
        layer = restoration.writable_layer()
        if own is not None and layer is not None:
            # Whiteouts are device nodes, and an overlay's own attributes are part of what it means.
            found += self._tree(own, Path(layer), "its own files", before=lambda _: None)
        elif own is not None:
            self.warnings.append("its own files are not restored: this host's storage driver has no folder for them")
        for volume, name in self._plan.volumes:
            if name in self._there and self._manifest.file_tree(volume_name(volume.name)) is not None:
                self._set_aside(name)
        mine = {volume.name for volume, name in self._plan.volumes if name in self._mine}
        for old, path in restoration.mount().items():
            if old not in mine:
                continue
            tree = self._manifest.file_tree(volume_name(old))
            if tree is None:
                self.warnings.append(f"volume {old} is empty: the backup does not hold it")
            else:
                found += self._tree(tree, Path(path), f"volume {old}", before=_empty)
        return found

    def _archive(self) -> Iterator[bytes]:
        saved, manifest = self._plan.saved, self._manifest
        config = manifest.file(of_member(IMAGE, self._member))
        if config is None:
            raise DamagedError("the backup does not hold the image's configuration", hint="it was forged")
        layers = []
        for digest in saved.image.layers:
            entry = manifest.stream(layer_name(digest))
            if entry is None:
                raise DamagedError(f"the backup does not hold layer {digest[:12]}", hint="it was forged")
            stored = StoredStream(self._reader, entry.stream)
            layers.append(image.StoredLayer(digest, entry.size, partial(_pieces, stored, self._shown.advance)))
        return image.archive_of(self._reader.read_file(config), layers, self._plan.image_names)

    def _tree(self, entry: TreeEntry, folder: Path, called: str, *, before: Callable[[Path], None]) -> list[str]:
        before(folder)
        tree = StoredFileTree(self._reader, entry)
        with FileTreeTarget(folder, devices=self._devices) as target:
            restore_tree(tree, target)
            target.finish()
            left_out = list(target.warnings)
        self.warnings += [f"{called}: {text}" for text in left_out]
        if left_out:
            return []
        return compared(tree, folder, called)

    def _set_aside(self, volume: str) -> None:
        """Move the files of a volume that is replaced beside it, and leave an empty folder in their place."""
        inspect = self._podman.get(f"volumes/{name_in_path(volume)}/json")
        path = Path(str(inspect["Mountpoint"]))
        if inspect.get("Driver") != "local" or inspect.get("Options") or path.name != "_data":
            raise TargetExistsError(
                f"volume {volume} lies elsewhere, and cannot be replaced safely", hint="restore with --volume-suffix"
            )
        status = path.stat()
        aside = path.with_name(f"{_ASIDE}-{os.urandom(4).hex()}")
        path.rename(aside)
        self._aside.append((path, aside))
        path.mkdir(status.st_mode & 0o7777)
        os.chown(path, status.st_uid, status.st_gid)

    def keep(self) -> None:
        """Let go of what was replaced."""
        while self._aside:
            _, aside = self._aside.pop()
            try:
                _empty(aside)
                aside.rmdir()
            except OSError as error:
                self.warnings.append(f"the old files in {aside} could not be removed: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Put back what was set aside and not let go of."""
        while self._aside:
            path, aside = self._aside.pop()
            with suppress(OSError):
                _empty(path)
                path.rmdir()
            aside.rename(path)


def _empty(folder: Path) -> None:
    """Remove all that is in the folder: what Podman has put into a new volume."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        empty(number)
    finally:
        os.close(number)


def _pieces(stored: StoredStream, advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in stored.read():
        advance(len(piece.data))
        yield bytes(piece.data)


def compared(tree: FileTree, folder: Path, called: str) -> list[str]:
    """Return what of the folder is not as in the tree, in words, the first few of it."""
    with LocalFileTree(folder) as there:
        return [f"{called}: {difference}" for difference in islice(differences(tree, there), SHOWN)]
