"""Finding out all that a pod is, and making it again."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from lab_backup.errors import LabBackupError
from lab_backup.sources.podman.adapt import powers, renamed, without_addresses
from lab_backup.sources.podman.connection import Podman, name_in_path
from lab_backup.sources.podman.container import ContainerFacts, look_at, networks_of
from lab_backup.sources.podman.pod_spec import differences, pod_spec
from lab_backup.sources.podman.restore import Options, addresses_in_use, ports_in_use
from lab_backup.sources.podman.saved import Json, SavedPod


@dataclass(slots=True)
class PodFacts:
    """A pod as it is now, and its containers but the one that holds it together."""

    saved: SavedPod
    members: list[ContainerFacts]


def look_at_pod(podman: Podman, name: str) -> PodFacts:
    """Return all about the pod `name` (or id). Raises PodmanError."""
    pod = podman.get(f"pods/{name_in_path(name)}/json", f"find the pod {name}")
    infra = _infra(podman, pod)
    identity = pod.get("InfraContainerID")
    members = [look_at(podman, entry["Id"]) for entry in pod.get("Containers") or [] if entry["Id"] != identity]
    saved = SavedPod(
        podman=podman.version,
        name=pod["Name"],
        spec=pod_spec(pod, infra),
        inspect=pod,
        members=tuple(sorted(member.saved.name for member in members)),
        networks=() if infra is None else networks_of(podman, infra),
    )
    return PodFacts(saved, sorted(members, key=lambda member: member.saved.name))


def _infra(podman: Podman, pod: Json) -> Json | None:
    identity = pod.get("InfraContainerID")
    if not identity:
        return None
    inspect: Json = podman.get(f"containers/{identity}/json", "look at the container that holds the pod together")
    return inspect


@dataclass(slots=True)
class PodPlan:
    """What a restore of a pod would do besides its containers. `keep`: the pod is there, is alike, and stays."""

    spec: Json
    networks: list[Json]
    keep: bool = False
    conflicts: list[str] = field(default_factory=list)
    powers: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The pod's name from now on."""
        return str(self.spec["name"])


def plan_pod(podman: Podman, saved: SavedPod, options: Options) -> PodPlan:
    """Return what a restore of the pod would do, and what stands in its way. Changes nothing. Raises PodmanError."""
    spec: Json = dict(saved.spec)
    lost: list[str] = []
    if options.name is not None and options.name != saved.name:
        spec, lost = renamed(spec, options.name)
        spec.pop("infra_name", None)
    plan = PodPlan(spec, [], lost=lost)
    if podman.exists(f"pods/{name_in_path(plan.name)}"):
        there = podman.get(f"pods/{name_in_path(plan.name)}/json")
        differing = differences(spec, pod_spec(there, _infra(podman, there)))
        plan.keep = options.overwrite and not differing
        if not options.overwrite:
            plan.conflicts.append(f"pod {plan.name} ({there.get('State')})")
        elif differing:
            plan.conflicts.append(f"pod {plan.name} has other settings ({', '.join(differing)}), and cannot be changed")
        return plan
    plan.spec, taken = without_addresses(spec, addresses_in_use(podman, but=""))
    plan.lost += taken
    plan.networks = [
        body for body in saved.networks if not podman.exists(f"networks/{name_in_path(str(body['name']))}")
    ]
    plan.powers = [] if options.trusted else powers(plan.spec)
    plan.conflicts += ports_in_use(podman, plan.spec, but=None)
    infra = plan.spec.get("infra_image")
    if infra and not podman.exists(f"images/{name_in_path(infra)}"):
        plan.conflicts.append(f"the image {infra}, with which the pod is held together, does not exist")
    return plan


class PodRestoration:
    """A pod on its way; a context manager. Leaving it without `finish` removes the pod and the networks that it made."""

    def __init__(self, podman: Podman, plan: PodPlan) -> None:
        """Prepare to make what `plan` says."""
        self._podman = podman
        self._plan = plan
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def make(self) -> None:
        """Make the pod, and start what holds it together, so that its containers can be prepared. Raises PodmanError."""
        podman, plan = self._podman, self._plan
        for body in plan.networks:
            name = name_in_path(str(body["name"]))
            podman.post("networks/create", f"make the network {name}", body)
            self._undo.append(lambda name=name: podman.delete(f"networks/{name}"))  # type: ignore[misc] # mypy knows no such lambda
        if not plan.keep:
            podman.post("pods/create", f"make the pod {plan.name}", plan.spec)
            self._undo.append(lambda: podman.delete(f"pods/{name_in_path(plan.name)}", force="true"))
        infra = podman.get(f"pods/{name_in_path(plan.name)}/json").get("InfraContainerID")
        if infra:
            podman.post(f"containers/{infra}/start", f"start what holds the pod {plan.name} together")

    def stop(self, containers: Iterable[str]) -> None:
        """Stop the pod that was made and the `containers` (ids) that were prepared in it. Raises PodmanError.

        Prepared ones would otherwise keep the network of a pod that is started again, and does not have it any more. A pod that was there before goes on.
        """
        if self._plan.keep:
            return
        for identity in containers:  # nothing of them has run: no need to wait for an answer to a polite signal
            self._podman.post(f"containers/{identity}/stop?timeout=0", "stop a container that was prepared")
        self._podman.post(f"pods/{name_in_path(self._plan.name)}/stop", f"stop the pod {self._plan.name}", t=0)

    def finish(self) -> None:
        """Keep what was made."""
        self._undo.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            with suppress(LabBackupError):
                self._undo.pop()()
