"""Bringing a pod back: what stands in the way of any part of it first, then the pod and all its containers, or nothing of it."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import msgspec

from lab_backup.errors import TargetExistsError, UsageError
from lab_backup.operations.progress import Progress, Silent
from lab_backup.operations.restore_container import SHOWN, Making, in_use, saved_container
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.manifest import Manifest
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.pod import PodPlan, PodRestoration, plan_pod
from lab_backup.sources.podman.pod_spec import member_name
from lab_backup.sources.podman.restore import Options, Restoration, RestorePlan
from lab_backup.sources.podman.restore import plan as plan_restore
from lab_backup.sources.podman.saved import POD, SavedPod

KIND = "pod"


@dataclass(frozen=True, slots=True)
class PodResult:
    """What a restore of a pod did, or with a dry run would do. `differences` are what is not as it was in the backup."""

    backup: str
    source: str
    pod: str
    containers: tuple[str, ...]
    started: bool
    volumes: tuple[str, ...]
    networks: tuple[str, ...]
    conflicts: tuple[str, ...]
    replaces: tuple[str, ...]
    differences: tuple[str, ...]
    duration_seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def restore_pod(
    repository: Repository,
    backup: Backup,
    *,
    connect: str,
    options: Options | None = None,
    start: bool = False,
    devices: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PodResult:
    """Make the pod of `backup` and all its containers again at the service `connect`; `start` starts those that ran, or all if none did.

    Nothing that exists is touched without `options.overwrite`, which replaces containers and volumes and keeps the pod itself, if it is there and alike.
    A failure removes what was made and puts back what was set aside. `devices`: device nodes in volumes as well.
    Raises TargetExistsError, UsageError, NotFoundError, DamagedError, PodmanError and the errors of targets.
    """
    begun = time.monotonic()
    shown = progress or Silent()
    chosen = options or Options()
    manifest, reader = backup.manifest, Reader(repository)
    saved = saved_pod(reader, manifest)
    with Podman(connect) as podman:
        pod = plan_pod(podman, saved, chosen)
        plans = _plans(podman, reader, manifest, saved, pod, chosen)
        if not podman.is_local and manifest.trees:
            pod.conflicts.append("files can be restored on the pod's own host only: run lab-backup there")
        if dry_run:
            return _result(backup, pod, plans, begun)
        _refuse(pod, plans)
        for what in _all([plan.replaces for plan in plans.values()]):
            shown.note(f"will be replaced: {what}")
        found: list[str] = []
        warnings: list[str] = []
        with ExitStack() as stack:
            made_pod = stack.enter_context(PodRestoration(podman, pod))
            restorations = {name: stack.enter_context(Restoration(podman, plan)) for name, plan in plans.items()}
            filled: set[str] = set()
            makings = {
                name: stack.enter_context(
                    Making(podman, reader, manifest, plan, shown, devices=devices, member=name, filled=filled)
                )
                for name, plan in plans.items()
            }
            made_pod.make()
            for name, making in makings.items():
                making.make(restorations[name])
            for name, making in makings.items():
                found += making.fill(restorations[name])
            if start:
                ran = [name for name, plan in plans.items() if plan.saved.running] or list(plans)
                for name in ran:
                    restorations[name].start()
            else:
                made_pod.stop(restoration.id for restoration in restorations.values())
            for name, making in makings.items():
                making.keep()
                found += [f"{plans[name].name}: {setting}" for setting in restorations[name].finish()]
                warnings += making.warnings
            made_pod.finish()
    return _result(backup, pod, plans, begun, started=start, found=found, warnings=warnings)


def saved_pod(reader: Reader, manifest: Manifest) -> SavedPod:
    """Return what the backup says of its pod. Raises UsageError for a backup of something else, DamagedError."""
    entry = manifest.file(POD)
    if manifest.source.kind != KIND or entry is None:
        raise UsageError(
            f"backup {manifest.backup[:12]} is one of {manifest.source.kind}/{manifest.source.name}, which is no pod",
            hint="see: lab-backup show",
        )
    try:
        return msgspec.json.decode(reader.read_file(entry), type=SavedPod)
    except msgspec.MsgspecError as error:
        raise DamagedError(f"{POD} of backup {manifest.backup[:12]} cannot be understood") from error


def _plans(
    podman: Podman, reader: Reader, manifest: Manifest, saved: SavedPod, pod: PodPlan, options: Options
) -> dict[str, RestorePlan]:
    """Return the plan for each container, by its name in the backup."""
    plans: dict[str, RestorePlan] = {}
    for name in saved.members:
        new = name if pod.name == saved.name else member_name(name, saved.name, pod.name)
        member = saved_container(reader, manifest, name)
        plan = plan_restore(podman, member, replace(options, name=new, pod=pod.name))
        needed = plan.spec.get("dependencyContainers")
        if needed:
            # Podman 4.3 cannot prepare such a container while what it needs is prepared too, but does not run.
            plan.spec = {key: value for key, value in plan.spec.items() if key != "dependencyContainers"}
            pod.warnings.append(f"{new} starts without waiting for {', '.join(needed)}, which it was made to require")
        plans[name] = plan
    replaced = {plan.replaced_container for plan in plans.values()}
    for plan in plans.values():
        for _, volume in plan.volumes if plan.replaces else ():
            plan.conflicts += in_use(podman, volume, replaced)
    return plans


def _refuse(pod: PodPlan, plans: dict[str, RestorePlan]) -> None:
    conflicts = _conflicts(pod, plans)
    if conflicts:
        raise TargetExistsError(
            f"the restore of pod {pod.name} is in conflict with what is there: {'; '.join(conflicts)}",
            hint="take --name and --volume-suffix to restore beside it, or --overwrite to replace its containers",
        )
    wanted = _all([pod.powers, *(plan.powers for plan in plans.values())])
    if wanted:
        raise UsageError(
            f"pod {pod.name} wants more of the host than a plain one: {'; '.join(wanted)}",
            hint="say --trusted if you trust whoever can write to the repository",
        )


def _conflicts(pod: PodPlan, plans: dict[str, RestorePlan]) -> tuple[str, ...]:
    return _all([pod.conflicts, *(plan.conflicts for plan in plans.values())])


def _all(lists: list[list[str]]) -> tuple[str, ...]:
    """Return all texts in their order, each once."""
    return tuple(dict.fromkeys(text for texts in lists for text in texts))


def _result(
    backup: Backup,
    pod: PodPlan,
    plans: dict[str, RestorePlan],
    begun: float,
    *,
    started: bool = False,
    found: list[str] | None = None,
    warnings: list[str] | None = None,
) -> PodResult:
    differing = tuple(found or ())
    told = [*pod.warnings, *(warnings or ())]
    if differing:
        told.append(f"not as it was in the backup: {', '.join(differing[:SHOWN])}")
    networks = [str(body["name"]) for body in pod.networks]
    networks += [str(body["name"]) for plan in plans.values() for body in plan.networks]
    return PodResult(
        backup=backup.id,
        source=backup.manifest.source.name,
        pod=pod.name,
        containers=tuple(plan.name for plan in plans.values()),
        started=started,
        volumes=tuple(dict.fromkeys(name for plan in plans.values() for _, name in plan.volumes)),
        networks=tuple(dict.fromkeys(networks)),
        conflicts=_conflicts(pod, plans),
        replaces=_all([plan.replaces for plan in plans.values()]),
        differences=differing,
        duration_seconds=time.monotonic() - begun,
        warnings=tuple(told),
        notes=tuple(
            f"a second one cannot have it too: {text}"
            for text in _all([pod.lost, *(plan.lost for plan in plans.values())])
        ),
    )
