"""Containers for tests, made by podman's own command line and removed with all that belongs to them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab_backup.demo.podman_service import IMAGE, PodmanService
from lab_backup.sources.podman.connection import Podman

IDLE = ("sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")


@dataclass(frozen=True)
class Box:
    """A running container and its volume."""

    service: PodmanService
    name: str

    @property
    def volume(self) -> str:
        """The name of the volume at /data."""
        return f"{self.name}-data"

    def inspect(self, podman: Podman) -> Any:
        """Return what the service tells about the container."""
        return podman.get(f"containers/{self.name}/json")

    def state(self, podman: Podman) -> str:
        """Return `running`, `paused` and so on."""
        return str(self.inspect(podman)["State"]["Status"])

    def sh(self, command: str) -> str:
        """Run a command in the container."""
        return self.service.run("exec", self.name, "sh", "-c", command).stdout.decode()


@contextmanager
def container(service: PodmanService, *options: str, name: str | None = None, image: str = IMAGE) -> Iterator[Box]:
    """Run a container with a volume at /data and `options` of `podman run`; at the end both are removed."""
    box = Box(service, name or f"t-{uuid.uuid4().hex[:8]}")
    service.run("volume", "create", box.volume)
    try:
        service.run("run", "-d", "--name", box.name, "-v", f"{box.volume}:/data", *options, image, *IDLE)
        yield box
    finally:
        service.run("unpause", box.name, check=False)
        service.run("rm", "-f", "-t", "0", box.name, check=False)
        service.run("volume", "rm", "-f", box.volume, check=False)
