"""What a backup says about a container besides its files: JSON that outlives this program, and that a restore does not trust."""

import re
from hashlib import sha256
from typing import Annotated, Any

import msgspec

# What Podman takes as a name: https://docs.podman.io/en/latest/markdown/podman-create.1.html
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Json = dict[str, Any]

VERSION = 1
CONTAINER = "container.json"
IMAGE = "image.json"
VOLUME = "volume.json"
POD = "pod.json"
ROOTFS = "rootfs"
_LAYER = "layer."
_LONGEST = 128  # characters in the name of a part of a backup


class SavedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A named volume: how to make it again, and where the container has it."""

    name: Name
    driver: str = "local"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    destination: str = ""
    anonymous: bool = False


class SavedVolumeSource(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that was backed up by itself. `users` are the names of the containers that mounted it."""

    version: int = VERSION
    podman: str
    volume: SavedVolume
    users: tuple[str, ...] = ()


class SavedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image: its id, its names, and the digests of its layers from the bottom up."""

    id: Digest
    names: tuple[str, ...] = ()
    layers: tuple[Digest, ...] = ()
    architecture: str = ""


class SavedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container. `inspect` and `spec` hold no value of a secret; `secrets` names those that it needs.

    `networks` are the bodies of the requests that make them; `units` are files of systemd and Quadlet that start it.
    """

    version: int = VERSION
    id: Digest
    name: Name
    podman: str
    running: bool
    spec: Json
    inspect: Json
    image: SavedImage
    volumes: tuple[SavedVolume, ...] = ()
    networks: tuple[Json, ...] = ()
    secrets: tuple[str, ...] = ()
    pod: Json | None = None
    units: dict[str, str] = {}


class SavedPod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod: the request that makes it again, the networks it is in, and the names of its containers but the one that holds it together."""

    version: int = VERSION
    podman: str
    name: Name
    spec: Json
    inspect: Json
    members: tuple[Name, ...] = ()
    networks: tuple[Json, ...] = ()


def of_member(name: str, member: str | None) -> str:
    """Return what a container's own part `name` is called in a backup: of its pod, where it is the container `member` of it."""
    return name if member is None else _part(f"member.{member}.{name}")


def layer_name(digest: str) -> str:
    """Return what a layer is called in a backup."""
    return f"{_LAYER}{digest}"


def volume_name(name: str) -> str:
    """Return what the volume `name` is called in a backup."""
    return _part(f"volume.{name}")


def bind_name(destination: str) -> str:
    """Return what the bind mount at `destination` is called in a backup."""
    return _part(f"bind.{destination}")


def _part(name: str) -> str:
    """Return `name`, made short and plain where it is not; then a hash keeps two of them apart."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if plain == name and len(name) <= _LONGEST:
        return name
    return f"{plain[: _LONGEST - 17]}.{sha256(name.encode()).hexdigest()[:16]}"
