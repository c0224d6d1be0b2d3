"""A named volume as a source of its own: how to make it again, who mounts it, and where its files are on its host."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_backup.errors import UsageError
from lab_backup.sources.podman.claim import PREFIX
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.container import users_of, volume
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.freeze import Target
from lab_backup.sources.podman.saved import SavedVolume

LOCAL = "local"
"""Podman's own driver; podman-volume-create(1)."""

_MOUNTING = ("device", "type")  # options with which the files lie elsewhere, and are seen while a container runs only


@dataclass(slots=True)
class VolumeFacts:
    """A volume as it is now. `users` are the containers that mount it, running or not; `folder` is where its files are."""

    saved: SavedVolume
    users: list[Target]
    folder: Path


def look_at(podman: Podman, name: str) -> VolumeFacts:
    """Return all about the volume `name`. Raises PodmanError, and UsageError where its files cannot be read now."""
    if name.startswith(PREFIX):
        raise UsageError(f"volume {name} is a note of a running backup", hint="there is nothing in it to back up")
    if not podman.is_local:
        raise UsageError(
            f"the files of volume {name} can be read on {podman.host} only", hint="run lab-backup on that host"
        )
    saved = volume(podman, name)
    inspect = podman.get(f"volumes/{name_in_path(name)}/json", f"find the volume {name}")
    folder = str(inspect.get("Mountpoint") or "")
    if saved.options.get("type") == "tmpfs":
        raise UsageError(f"volume {name} is in memory only", hint="memory file systems are never backed up")
    if not folder or (lies_elsewhere(saved) and not os.path.ismount(folder)):
        raise UsageError(
            f"the files of volume {name} cannot be seen: its driver mounts them while a container that uses it runs",
            hint=f"start such a container first; see: podman ps -a --filter volume={name}",
        )
    return VolumeFacts(saved=saved, users=users_of(podman, name), folder=Path(folder))


def lies_elsewhere(saved: SavedVolume) -> bool:
    """Tell whether the volume's files are in a place that its driver or its options name, not in a folder of Podman's."""
    return saved.driver != LOCAL or any(saved.options.get(option) for option in _MOUNTING)


def make(podman: Podman, saved: SavedVolume, name: str) -> Path:
    """Make the volume `name` as `saved` was, in a folder of Podman's; return the folder. Leaves nothing behind when it fails. Raises PodmanError.

    What a backup says about another place is not followed: with it, a forged one would get its files written there.
    """
    options = {} if lies_elsewhere(saved) else saved.options
    body = {"Name": name, "Driver": LOCAL, "Options": options, "Label": saved.labels, "Labels": saved.labels}
    made: Any = podman.post("volumes/create", f"make the volume {name}", body)
    folder = str((made or {}).get("Mountpoint") or "")
    if not folder:
        remove(podman, name)
        raise PodmanError(f"the service does not say where the new volume {name} is")
    return Path(folder)


def remove(podman: Podman, name: str) -> None:
    """Remove the volume `name`, which nobody uses. Raises PodmanError."""
    podman.delete(f"volumes/{name_in_path(name)}", f"remove the volume {name}", force="true")
