"""Finding out all that a container is."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab_backup.sources.podman import image
from lab_backup.sources.podman.claim import PREFIX
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.errors import PodmanNotFoundError
from lab_backup.sources.podman.freeze import Target
from lab_backup.sources.podman.pod_spec import member_spec
from lab_backup.sources.podman.saved import Json, SavedContainer, SavedImage, SavedVolume
from lab_backup.sources.podman.spec import Unsaid, create_spec, secrets_in_command, without_secrets

DEFAULT_NETWORK = "podman"
"""The network that every host has."""

QUADLET = (Path("/etc/containers/systemd"), Path("/usr/share/containers/systemd"), Path("/etc/systemd/system"))
"""Where the unit that starts a container is written; systemd(1), podman-systemd.unit(5)."""

_UNIT_LABEL = "PODMAN_SYSTEMD_UNIT"
_NETWORK_BODY = (
    "name", "driver", "network_interface", "subnets", "ipv6_enabled", "internal", "dns_enabled", "labels", "options",
    "ipam_options", "routes", "network_dns_servers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MountPoint:
    """Where on the container's host the files of a volume or bind mount are."""

    name: str
    path: str
    destination: str


@dataclass(slots=True)
class ContainerFacts:
    """A container as it is now, and where its files are on its host.

    `sharing` are the containers that must be held still with it: itself first, then all that mount one of its volumes.
    `writable_layer` is None where the storage driver has none that could be read as a folder.
    """

    saved: SavedContainer
    image: image.ImageFacts
    sharing: list[Target]
    volumes: list[MountPoint]
    binds: list[MountPoint]
    writable_layer: str | None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_at(podman: Podman, name: str) -> ContainerFacts:
    """Return all about the container `name` (or id). Raises PodmanError."""
    inspect = podman.get(f"containers/{name_in_path(name)}/json", f"find the container {name}")
    facts = image.look_at(podman, inspect["Image"])
    config = inspect["Config"]
    said = secrets_in_command(config.get("CreateCommand") or [])
    pod = _pod(podman, inspect)
    unsaid = Unsaid(
        image_environment=facts.environment,
        image_entrypoint=facts.entrypoint,
        secret_environment=said.secret_environment,
        secret_targets=said.secret_targets,
        pod=None if pod is None else pod["Name"],
    )
    volumes = [mount for mount in inspect.get("Mounts") or [] if mount["Type"] == "volume"]
    spec = create_spec(inspect, image=inspect.get("ImageName") or inspect["Image"], unsaid=unsaid)
    saved = SavedContainer(
        id=inspect["Id"],
        name=inspect["Name"],
        podman=podman.version,
        running=inspect["State"]["Status"] == "running",
        spec=spec if pod is None else member_spec(spec, pod),
        inspect=without_secrets(inspect, said.secret_environment),
        image=SavedImage(id=facts.id, names=facts.names, layers=facts.layers, architecture=facts.architecture),
        volumes=tuple(volume(podman, mount["Name"], mount["Destination"]) for mount in volumes),
        networks=networks_of(podman, inspect),
        secrets=tuple(
            sorted({secret["Name"] for secret in config.get("Secrets") or []} | set(said.secret_environment.values()))
        ),
        pod=pod,
        units=_units(inspect) if podman.is_local else {},
    )
    layer = (inspect.get("GraphDriver") or {}).get("Data") or {}
    return ContainerFacts(
        saved=saved,
        image=facts,
        sharing=_sharing(podman, inspect, volumes),
        volumes=[MountPoint(mount["Name"], mount["Source"], mount["Destination"]) for mount in volumes],
        binds=[
            MountPoint(mount["Destination"], mount["Source"], mount["Destination"])
            for mount in inspect.get("Mounts") or []
            if mount["Type"] == "bind"
        ],
        writable_layer=layer.get("UpperDir"),
    )


def volume(podman: Podman, name: str, destination: str = "") -> SavedVolume:
    """Return how to make the volume `name` again. Raises PodmanError."""
    answer = podman.get(f"volumes/{name_in_path(name)}/json", f"find the volume {name}")
    return SavedVolume(
        name=name,
        driver=answer.get("Driver") or "local",
        labels=answer.get("Labels") or {},
        options={key: str(value) for key, value in (answer.get("Options") or {}).items()},
        destination=destination,
        anonymous=bool(answer.get("Anonymous")),
    )


def users_of(podman: Podman, name: str) -> list[Target]:
    """Return the containers that mount the volume `name`."""
    found = podman.get(
        "containers/json", f"find who uses the volume {name}", all="true", filters=json.dumps({"volume": [name]})
    )
    return [
        Target(entry["Id"], (entry.get("Names") or [entry["Id"][:12]])[0], vanishes=bool(entry.get("AutoRemove")))
        for entry in found or []
    ]


def _sharing(podman: Podman, inspect: Json, volumes: list[Json]) -> list[Target]:
    own = Target(inspect["Id"], inspect["Name"], vanishes=bool(inspect["HostConfig"].get("AutoRemove")))
    others = {
        user.id: user
        for mount in volumes
        if not mount["Name"].startswith(PREFIX)
        for user in users_of(podman, mount["Name"])
        if user.id != own.id
    }
    return [own, *sorted(others.values(), key=lambda user: user.id)]


def networks_of(podman: Podman, inspect: Json) -> tuple[Json, ...]:
    """Return the requests that make the networks of a container; without that which every host has. Raises PodmanError."""
    bodies = []
    for name in (inspect.get("NetworkSettings") or {}).get("Networks") or {}:
        if name == DEFAULT_NETWORK:
            continue
        try:
            answer = podman.get(f"networks/{name_in_path(name)}/json", f"look at the network {name}")
        except PodmanNotFoundError:
            continue  # the container would not start with it either
        bodies.append({key: answer[key] for key in _NETWORK_BODY if answer.get(key) is not None})
    return tuple(bodies)


def _pod(podman: Podman, inspect: Json) -> Any:
    identity = inspect.get("Pod")
    return podman.get(f"pods/{identity}/json", "look at the container's pod") if identity else None


def _units(inspect: Json) -> dict[str, str]:
    """Return the unit file that starts the container, and the Quadlet file that it was made from, where they exist."""
    unit = (inspect["Config"].get("Labels") or {}).get(_UNIT_LABEL, "")
    if not unit or "/" in unit:
        return {}
    found = {}
    for folder in QUADLET:
        for name in (unit, f"{unit.removesuffix('.service')}.container"):
            path = folder / name
            if path.is_file():
                found[str(path)] = path.read_text(encoding="utf-8", errors="replace")
    return found
