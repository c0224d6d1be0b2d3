"""Making a container again: first what stands in the way, then everything it needs, and all of it undone if anything fails."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from lab_backup.errors import LabBackupError, TargetExistsError, UsageError
from lab_backup.sources.podman import image
from lab_backup.sources.podman.adapt import powers, renamed, with_volumes, without_addresses
from lab_backup.sources.podman.compare import differences
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.errors import PodmanNotFoundError
from lab_backup.sources.podman.saved import SavedContainer, SavedVolume
from lab_backup.sources.podman.spec import Json
from lab_backup.sources.podman.volume import lies_elsewhere

_ASIDE = "-before-restore"


@dataclass(frozen=True, slots=True)
class Options:
    """How to restore. `trusted` grants what the spec wants of the host, which a forged backup would ask for as well.

    `pod` is the pod that is restored together with the container, by its name from now on.
    """

    name: str | None = None
    overwrite: bool = False
    volume_suffix: str = ""
    trusted: bool = False
    pod: str | None = None


@dataclass(slots=True)
class RestorePlan:
    """What a restore would do. `conflicts` keep it from being done; `replaces` is what it takes the place of.

    `volumes` are (as saved, name now); `networks` those to be made; `lost` is what a second container cannot have too.
    """

    saved: SavedContainer
    spec: Json
    volumes: list[tuple[SavedVolume, str]]
    networks: list[Json]
    load_image: bool
    image_names: list[str]
    conflicts: list[str] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)
    powers: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    replaced_container: str | None = None

    @property
    def name(self) -> str:
        """The container's name from now on."""
        return str(self.spec["name"])

    def refuse(self) -> None:
        """Raise where the restore cannot or must not be done."""
        if self.conflicts:
            raise TargetExistsError(
                f"the restore of {self.name} is in conflict with what is there: {'; '.join(self.conflicts)}",
                hint="take --name and --volume-suffix to restore beside it, or --overwrite to replace it",
            )
        if self.powers:
            raise UsageError(
                f"{self.name} wants more of the host than a plain container: {'; '.join(self.powers)}",
                hint="say --trusted if you trust whoever can write to the repository",
            )


def plan(podman: Podman, saved: SavedContainer, options: Options) -> RestorePlan:
    """Return what a restore would do, and what stands in its way. Changes nothing. Raises PodmanError."""
    spec: Json = dict(saved.spec)
    lost: list[str] = []
    if options.name is not None and options.name != saved.name:
        spec, lost = renamed(spec, options.name)
    if options.pod is not None:
        spec["pod"] = options.pod
    spec, taken = without_addresses(spec, addresses_in_use(podman, but=saved.name))
    lost += taken
    volumes = [(volume, volume.name + options.volume_suffix) for volume in saved.volumes]
    spec = with_volumes(spec, {volume.name: name for volume, name in volumes})
    load = not podman.exists(f"images/{saved.image.id}")
    names = [name for name in saved.image.names if not podman.exists(f"images/{name_in_path(name)}")]
    if saved.image.id and spec.get("image") not in names and spec.get("image") in saved.image.names and load:
        spec["image"] = saved.image.id  # its name is another image's by now, and stays so
    result = RestorePlan(
        saved=saved,
        spec=spec,
        volumes=volumes,
        networks=[body for body in saved.networks if not podman.exists(f"networks/{name_in_path(str(body['name']))}")],
        load_image=load,
        image_names=names if load else [],
        powers=[] if options.trusted else [*powers(spec), *_places(podman, volumes)],
        lost=lost,
    )
    found = _in_the_way(podman, result)
    if options.overwrite:
        result.replaces = found
    else:
        result.conflicts = found
    result.conflicts += _impossible(podman, result, made_pod=options.pod is not None)
    return result


def _places(podman: Podman, volumes: list[tuple[SavedVolume, str]]) -> list[str]:
    """Return, in words, the places outside Podman's own folders that volumes to be made would open to the container."""
    return [
        f"volume {name} elsewhere (driver {volume.driver}, {volume.options.get('device') or volume.options.get('type') or 'its own place'})"
        for volume, name in volumes
        if lies_elsewhere(volume) and not podman.exists(f"volumes/{name_in_path(name)}")
    ]


def addresses_in_use(podman: Podman, *, but: str) -> set[str]:
    """Return the addresses of all running containers but the one called `but`."""
    found: set[str] = set()
    for entry in podman.get("containers/json") or []:
        if but in (entry.get("Names") or []):
            continue
        with suppress(PodmanNotFoundError):
            inspect = podman.get(f"containers/{entry['Id']}/json")
            networks = (inspect.get("NetworkSettings") or {}).get("Networks") or {}
            found |= {str(attached.get("IPAddress")) for attached in networks.values() if attached.get("IPAddress")}
    return found


def _in_the_way(podman: Podman, plan: RestorePlan) -> list[str]:
    """Return what the restore would take the place of."""
    found = []
    if podman.exists(f"containers/{name_in_path(plan.name)}"):
        there = podman.get(f"containers/{name_in_path(plan.name)}/json")
        plan.replaced_container = there["Id"]
        found.append(f"container {plan.name} ({there['State']['Status']})")
    found.extend(f"volume {name}" for _, name in plan.volumes if podman.exists(f"volumes/{name_in_path(name)}"))
    return found


def _impossible(podman: Podman, plan: RestorePlan, *, made_pod: bool) -> list[str]:
    """Return what no overwriting helps against."""
    found = []
    own = (podman.get("info").get("host") or {}).get("arch")
    if plan.saved.image.architecture and own and plan.saved.image.architecture != own:
        found.append(f"the image is for {plan.saved.image.architecture}, the host is {own}")
    found += ports_in_use(podman, plan.spec, but=plan.replaced_container)
    found.extend(f"the secret {name} does not exist" for name in plan.saved.secrets if not _has_secret(podman, name))
    pod = plan.spec.get("pod")
    if pod and not made_pod and not podman.exists(f"pods/{name_in_path(pod)}"):
        found.append(f"the pod {pod} does not exist")
    return found


def ports_in_use(podman: Podman, spec: Json, *, but: str | None) -> list[str]:
    """Return, in words, the ports of the host that `spec` wants and running containers have, the one with the id `but` aside."""
    wanted = {(port["host_port"], port["protocol"]) for port in spec.get("portmappings") or [] if port["host_port"]}
    found: list[str] = []
    for other in podman.get("containers/json") or []:
        if other["Id"] == but:
            continue
        taken = {(port.get("host_port"), port.get("protocol")) for port in other.get("Ports") or []}
        found.extend(
            f"port {number}/{kind} is in use by {other['Names'][0]}" for number, kind in sorted(wanted & taken)
        )
    return found


def _has_secret(podman: Podman, name: str) -> bool:
    try:
        podman.get(f"secrets/{name_in_path(name)}/json")
    except PodmanNotFoundError:
        return False
    return True


class Restoration:
    """A restore on its way; a context manager. Leaving it without `finish` removes all that it made, and nothing else.

    The order is `make`, then the caller fills volumes and writable layer, then `start` and `finish`.
    """

    def __init__(self, podman: Podman, plan: RestorePlan) -> None:
        """Prepare to do what `plan` says. Raises TargetExistsError, UsageError where it must not be done."""
        plan.refuse()
        self._podman = podman
        self._plan = plan
        self._undo: list[Callable[[], object]] = []
        self._aside: str | None = None
        self.id = ""

    def __enter__(self) -> Self:
        return self

    def make(self, archive: Iterable[bytes] | None) -> None:
        """Make image (of `archive`, where it has to be loaded), networks, volumes and container, which is not started."""
        podman, plan = self._podman, self._plan
        if plan.load_image and not podman.exists(f"images/{plan.saved.image.id}"):
            if archive is None:
                raise RuntimeError("the image has to be loaded")
            self._undo.append(lambda: podman.delete(f"images/{plan.saved.image.id}", force="true"))
            image.load(podman, archive)
        for body in plan.networks:
            name = name_in_path(str(body["name"]))
            if podman.exists(f"networks/{name}"):
                continue  # another container of its pod was first
            podman.post("networks/create", f"make the network {name}", body)
            self._undo.append(lambda name=name: podman.delete(f"networks/{name}"))  # type: ignore[misc] # mypy knows no such lambda
        for volume, name in plan.volumes:
            if not podman.exists(f"volumes/{name_in_path(name)}"):
                self._make_volume(volume, name)
        if plan.replaced_container is not None:
            self._set_aside(plan.replaced_container)
        answer = podman.post("containers/create", f"make the container {plan.name}", plan.spec)
        self.id = answer["Id"]
        self._undo.append(lambda: podman.delete(f"containers/{self.id}", force="true", v="false"))

    def _make_volume(self, volume: SavedVolume, name: str) -> None:
        body = {
            "Name": name,
            "Driver": volume.driver,
            "Options": volume.options,
            "Label": volume.labels,
            "Labels": volume.labels,
        }
        self._podman.post("volumes/create", f"make the volume {name}", body)
        self._undo.append(lambda: self._podman.delete(f"volumes/{name_in_path(name)}", force="true"))

    def _set_aside(self, container: str) -> None:
        """Stop and rename the container that is replaced: it is removed only when the new one is complete."""
        podman, plan = self._podman, self._plan
        there = podman.get(f"containers/{container}/json")
        aside = f"{plan.name}{_ASIDE}-{container[:8]}"
        if there["State"]["Status"] in {"running", "paused"}:
            if there["State"]["Status"] == "paused":
                podman.post(f"containers/{container}/unpause")
            self._undo.append(lambda: podman.post(f"containers/{container}/start"))
            podman.post(f"containers/{container}/stop", "stop the container that is replaced")
        podman.post(f"containers/{container}/rename", "set the container aside", name=aside)
        self._undo.append(lambda: podman.post(f"containers/{container}/rename", name=plan.name))
        self._aside = container

    def writable_layer(self) -> str | None:
        """Return where the container's own files belong, to be filled before `mount`; None where it is no folder."""
        inspect = self._podman.get(f"containers/{self.id}/json")
        layer = ((inspect.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        return None if layer is None else str(layer)

    def mount(self) -> dict[str, str]:
        """Prepare the container to start; return where each volume (its old name) is on the host, ready to be filled.

        Podman gives a new volume its owner and first content when it is first mounted: that is over when this returns.
        """
        self._podman.post(f"containers/{self.id}/init", "prepare the container")
        return {
            volume.name: str(self._podman.get(f"volumes/{name_in_path(name)}/json")["Mountpoint"])
            for volume, name in self._plan.volumes
        }

    def start(self) -> None:
        """Start the container. Raises PodmanError."""
        self._podman.post(f"containers/{self.id}/start", f"start {self._plan.name}")

    def finish(self) -> list[str]:
        """Keep what was made, remove what it replaced; return the settings that differ from those in the backup."""
        self._undo.clear()
        if self._aside is not None:
            self._podman.delete(f"containers/{self._aside}", "remove the container that was replaced", force="true")
        inspect = self._podman.get(f"containers/{self.id}/json")
        expected = self._plan.saved.inspect
        return differences(expected, inspect) if self._plan.name == self._plan.saved.name else []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            with suppress(LabBackupError):
                self._undo.pop()()
