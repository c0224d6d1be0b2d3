"""What containers a host has."""

from dataclasses import dataclass

from lab_backup.sources.podman.connection import Podman


@dataclass(frozen=True, slots=True)
class FoundContainer:
    """A container of a host."""

    name: str
    container_id: str
    image: str
    state: str


def list_containers(connect: str) -> list[FoundContainer]:
    """Return the containers of the host `connect`, by name, without those that hold a pod together. Raises LabBackupError where it cannot be asked."""
    with Podman(connect) as podman:
        rows = podman.get("/containers/json", "the list of containers", all="true") or []
    found = [
        FoundContainer(row["Names"][0], row["Id"], row.get("Image") or "", row.get("State") or "unknown")
        for row in rows
        if row.get("Names") and not row.get("IsInfra")
    ]
    return sorted(found, key=lambda container: container.name)
