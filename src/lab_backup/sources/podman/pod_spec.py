"""From what Podman tells about a pod to the request that makes it again, and what its containers' requests say of it. Pure functions.

The output is the body of `POST /libpod/pods/create` (PodSpecGenerator): https://docs.podman.io/en/latest/_static/api.html
"""

from typing import Any

from lab_backup.sources.podman.spec import Json, Unsaid, create_spec

OWN_INFRA = "localhost/podman-pause:"
"""The image that Podman makes by itself for the container that holds a pod together."""

_OF_INFRA = (
    "netns", "networks", "network_options", "portmappings", "dns_server", "dns_search", "dns_option", "hostadd", "shm_size", "mounts", "volumes", "devices",
)  # fmt: skip
_SHARED = ("netns", "utsns", "ipcns", "pidns", "userns", "cgroupns")
_USUAL_PARENTS = {"", "/libpod_parent", "machine.slice", "user.slice"}
_LIMITS = (
    ("memory_limit", "memory", "limit"),
    ("memory_swap", "memory", "swap"),
    ("cpu_period", "cpu", "period"),
    ("cpu_quota", "cpu", "quota"),
    ("cpu_shares", "cpu", "shares"),
    ("cpuset_cpus", "cpu", "cpus"),
)  # as the inspect data and the request call them


def pod_spec(pod: Json, infra: Json | None) -> Json:
    """Return the request that makes the pod again; `infra` is the inspect data of the container that holds it together, None where it has none."""
    spec: Json = {
        "name": pod["Name"],
        "labels": pod.get("Labels"),
        "hostname": pod.get("Hostname"),
        "exit_policy": pod.get("ExitPolicy"),
        "cgroup_parent": None if pod.get("CgroupParent") in _USUAL_PARENTS else pod.get("CgroupParent"),
        "resource_limits": _limits(pod),
        "security_opt": pod.get("security_opt"),
    }
    if not pod.get("CreateCgroup", True):
        spec["share_parent"] = False
    if infra is None:
        spec["no_infra"] = True
    else:
        spec["shared_namespaces"] = sorted(pod.get("SharedNamespaces") or [])  # told in any order
        spec |= _of_infra(infra, pod.get("InfraConfig") or {})
    return {name: value for name, value in spec.items() if value not in (None, "", [], {})}


def _of_infra(infra: Json, config: Json) -> Json:
    made = create_spec(infra, image=infra.get("ImageName") or infra["Image"], unsaid=Unsaid())
    spec: Json = {name: made.get(name) for name in _OF_INFRA}
    if not str(made["image"]).startswith(OWN_INFRA):
        entrypoint = infra["Config"].get("Entrypoint") or ""
        spec["infra_image"] = made["image"]
        spec["infra_command"] = entrypoint.split() if isinstance(entrypoint, str) else entrypoint
    if not infra["Name"].endswith("-infra"):
        spec["infra_name"] = infra["Name"]
    for target, source in (("pid", "pid_ns"), ("utsns", "uts_ns")):
        if config.get(source) == "host":
            spec[target] = {"nsmode": "host"}
    for name, source in (("no_manage_resolv_conf", "NoManageResolvConf"), ("no_manage_hosts", "NoManageHosts")):
        spec[name] = True if config.get(source) else None
    return spec


def _limits(pod: Json) -> Json:
    limits: Json = {}
    for source, kind, name in _LIMITS:
        if pod.get(source):
            limits.setdefault(kind, {})[name] = pod[source]
    return limits


def member_spec(spec: Json, pod: Json) -> Json:
    """Return a container's request with what it shares with its pod told as that, and not by ids that go with the pod."""
    infra = pod.get("InfraContainerID") or ""
    changed: Json = {}
    for name in _SHARED:
        mode = spec.get(name) or {}
        if infra and mode.get("nsmode") == "container" and mode.get("value") == infra:
            changed[name] = {"nsmode": "pod"}
    names = {entry["Id"]: entry["Name"] for entry in pod.get("Containers") or []}
    changed["dependencyContainers"] = [
        names.get(other, other) for other in spec.get("dependencyContainers") or [] if other != infra
    ]
    if spec.get("cgroup_parent") == pod.get("CgroupPath"):
        changed["cgroup_parent"] = None
    return {name: value for name, value in {**spec, **changed}.items() if value not in (None, [], {})}


def differences(before: Json, after: Json) -> list[str]:
    """Return the settings in which two requests for pods differ; addresses, which a pod that does not run has not, are left out."""
    first, second = _comparable(before), _comparable(after)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _comparable(spec: Json) -> dict[str, Any]:
    return {**spec, "networks": sorted(spec.get("networks") or {})}


def member_name(member: str, pod: str, new: str) -> str:
    """Return what the container `member` of `pod` is called in the pod `new`: `web-db` of `web` becomes `new-db`."""
    return f"{new}-{member.removeprefix(f'{pod}-')}"
