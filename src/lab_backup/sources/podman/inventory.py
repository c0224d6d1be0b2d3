"""What a Podman host has."""

from dataclasses import dataclass

from lab_backup.sources.podman.connection import Podman


@dataclass(frozen=True, slots=True)
class FoundContainer:
    """A container of a host; `pod` is the name of the pod that it is in, "" for none."""

    name: str
    container_id: str
    image: str
    pod: str
    state: str


@dataclass(frozen=True, slots=True)
class FoundPod:
    """A pod; `containers` without the one that holds it together."""

    name: str
    pod_id: str
    containers: int
    state: str


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A named volume."""

    name: str
    driver: str
    state: str = "present"


@dataclass(frozen=True, slots=True)
class Found:
    """All that a host has, each by name."""

    containers: list[FoundContainer]
    pods: list[FoundPod]
    volumes: list[FoundVolume]

    def __len__(self) -> int:
        """How many containers."""
        return len(self.containers)


def list_all(connect: str) -> Found:
    """Return what the host `connect` has. Raises LabBackupError where it cannot be asked."""
    with Podman(connect) as podman:
        pods = podman.get("/pods/json", "the list of pods") or []
        volumes = podman.get("/volumes/json", "the list of volumes") or []
        return Found(
            _containers(podman, {row["Id"]: row["Name"] for row in pods}),
            sorted((_pod(row) for row in pods), key=lambda pod: pod.name),
            sorted((FoundVolume(row["Name"], row.get("Driver") or "local") for row in volumes), key=_name),
        )


def list_containers(connect: str) -> list[FoundContainer]:
    """Return the containers of the host `connect`, by name, without those that hold a pod together. Raises LabBackupError where it cannot be asked."""
    return list_all(connect).containers


def _containers(podman: Podman, pods: dict[str, str]) -> list[FoundContainer]:
    rows = podman.get("/containers/json", "the list of containers", all="true") or []
    found = [
        FoundContainer(
            row["Names"][0],
            row["Id"],
            row.get("Image") or "",
            pods.get(row.get("Pod") or "", ""),
            row.get("State") or "unknown",
        )
        for row in rows
        if row.get("Names") and not row.get("IsInfra")
    ]
    return sorted(found, key=lambda container: container.name)


def _pod(row: dict[str, object]) -> FoundPod:
    members = row.get("Containers")
    infra = row.get("InfraId")
    count = sum(member.get("Id") != infra for member in members) if isinstance(members, list) else 0
    return FoundPod(str(row["Name"]), str(row["Id"]), count, str(row.get("Status") or "unknown").lower())


def _name(volume: FoundVolume) -> str:
    return volume.name
