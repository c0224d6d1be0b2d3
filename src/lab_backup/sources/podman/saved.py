"""What a backup says about a container besides its files: JSON that outlives this program, and that a restore does not trust."""

from typing import Annotated, Any

import msgspec

# What Podman takes as a name: https://docs.podman.io/en/latest/markdown/podman-create.1.html
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Json = dict[str, Any]

VERSION = 1


class SavedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A named volume: how to make it again, and where the container has it."""

    name: Name
    driver: str = "local"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    destination: str = ""
    anonymous: bool = False


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
