"""From what Podman tells about a container to the request that makes it again.

The input is `GET /libpod/containers/NAME/json`, the output the body of `POST /libpod/containers/create` (SpecGenerator). Pure functions over
plain JSON. What cannot be told from the input, because Podman does not say it, is a parameter.

https://docs.podman.io/en/latest/_static/api.html
"""

import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

_PODMANS = (
    "io.container",
    "io.kubernetes",
    "io.podman.annotations",
    "org.opencontainers.image",
    "org.systemd",
)
_INIT = "io.podman.annotations.init"


@dataclass(frozen=True, slots=True)
class Unsaid:
    """What the inspect data of a container does not hold, from elsewhere.

    `image_environment` is what its image sets. `secret_environment` names the secret behind a variable; such a variable is
    never taken as text. `secret_targets` are file names of secrets where they differ from the secret's own.
    """

    image_environment: Sequence[str] = ()
    image_entrypoint: Sequence[str] = ()
    secret_environment: Mapping[str, str] = field(default_factory=dict)
    secret_targets: Mapping[str, str] = field(default_factory=dict)
    sysctl: Mapping[str, str] = field(default_factory=dict)
    pod: str | None = None


def _as_is(value: Any) -> Any:
    return value


def _signal(value: Any) -> int:
    return value if isinstance(value, int) else int(signal.Signals[value])


def _ulimits(value: Sequence[Json]) -> list[Json]:
    return [
        {"type": limit["Name"].removeprefix("RLIMIT_").lower(), "soft": limit["Soft"], "hard": limit["Hard"]}
        for limit in value
    ]


def own_annotations(value: Mapping[str, str]) -> Json:
    """Return the annotations that somebody has set; the others are Podman's."""
    return {name: text for name, text in value.items() if not name.startswith(_PODMANS)}


def _devices(value: Sequence[Json]) -> list[Json]:
    return [
        {"path": f"{device['PathOnHost']}:{device['PathInContainer']}:{device.get('CgroupPermissions') or 'rwm'}"}
        for device in value
    ]


def _positive(value: int) -> int | None:
    return value if value > 0 else None


def _from_zero(value: int) -> int | None:
    return value if value >= 0 else None


Converter = Callable[[Any], Any]

# (where it is in the spec, where in the inspect data, how it is translated). What is empty on either side is left out.
_ON_FAILURE = {"kill": 2, "restart": 3, "stop": 4}
"""What to do with an unhealthy container, as the request counts it; `none` is the default."""

_TABLE: tuple[tuple[str, str, Converter], ...] = (
    ("command", "Config.Cmd", _as_is),
    ("labels", "Config.Labels", _as_is),
    ("user", "Config.User", _as_is),
    ("work_dir", "Config.WorkingDir", _as_is),
    ("terminal", "Config.Tty", _as_is),
    ("stdin", "Config.OpenStdin", _as_is),
    ("umask", "Config.Umask", _as_is),
    ("stop_signal", "Config.StopSignal", _signal),
    ("stop_timeout", "Config.StopTimeout", _as_is),
    ("timeout", "Config.Timeout", _as_is),
    ("timezone", "Config.Timezone", _as_is),
    ("healthconfig", "Config.Healthcheck", _as_is),
    ("health_check_on_failure_action", "Config.HealthcheckOnFailureAction", _ON_FAILURE.get),
    ("startupHealthConfig", "Config.StartupHealthCheck", _as_is),
    ("annotations", "Config.Annotations", own_annotations),
    ("passwd_entry", "Config.Passwd", lambda value: value if isinstance(value, str) else None),
    ("sdnotifyMode", "Config.sdNotifyMode", _as_is),
    ("restart_policy", "HostConfig.RestartPolicy.Name", _as_is),
    ("restart_tries", "HostConfig.RestartPolicy.MaximumRetryCount", _as_is),
    ("remove", "HostConfig.AutoRemove", _as_is),
    ("cap_add", "HostConfig.CapAdd", _as_is),
    ("cap_drop", "HostConfig.CapDrop", _as_is),
    ("privileged", "HostConfig.Privileged", _as_is),
    ("read_only_filesystem", "HostConfig.ReadonlyRootfs", _as_is),
    ("dns_server", "HostConfig.Dns", _as_is),
    ("dns_search", "HostConfig.DnsSearch", _as_is),
    ("dns_option", "HostConfig.DnsOptions", _as_is),
    ("hostadd", "HostConfig.ExtraHosts", _as_is),
    ("groups", "HostConfig.GroupAdd", _as_is),
    ("shm_size", "HostConfig.ShmSize", _positive),
    ("r_limits", "HostConfig.Ulimits", _ulimits),
    ("devices", "HostConfig.Devices", _devices),
    ("cgroup_parent", "HostConfig.CgroupParent", _as_is),
    ("oom_score_adj", "HostConfig.OomScoreAdj", _as_is),
    ("publish_image_ports", "HostConfig.PublishAllPorts", _as_is),
    ("log_configuration.driver", "HostConfig.LogConfig.Type", _as_is),
    ("log_configuration.options", "HostConfig.LogConfig.Config", _as_is),
    ("resource_limits.memory.limit", "HostConfig.Memory", _positive),
    ("resource_limits.memory.reservation", "HostConfig.MemoryReservation", _positive),
    ("resource_limits.memory.swap", "HostConfig.MemorySwap", _as_is),
    ("resource_limits.memory.swappiness", "HostConfig.MemorySwappiness", _from_zero),
    ("resource_limits.memory.disableOOMKiller", "HostConfig.OomKillDisable", _as_is),
    ("resource_limits.cpu.shares", "HostConfig.CpuShares", _positive),
    ("resource_limits.cpu.quota", "HostConfig.CpuQuota", _as_is),
    ("resource_limits.cpu.period", "HostConfig.CpuPeriod", _positive),
    ("resource_limits.cpu.realtimeRuntime", "HostConfig.CpuRealtimeRuntime", _positive),
    ("resource_limits.cpu.realtimePeriod", "HostConfig.CpuRealtimePeriod", _positive),
    ("resource_limits.cpu.cpus", "HostConfig.CpusetCpus", _as_is),
    ("resource_limits.cpu.mems", "HostConfig.CpusetMems", _as_is),
    ("resource_limits.pids.limit", "HostConfig.PidsLimit", _as_is),
    ("resource_limits.blockIO.weight", "HostConfig.BlkioWeight", _positive),
)

_NAMESPACES = (
    ("utsns", "UTSMode"),
    ("pidns", "PidMode"),
    ("ipcns", "IpcMode"),
    ("userns", "UsernsMode"),
    ("cgroupns", "CgroupMode"),
)
_NAMESPACE_MODES = {"host", "private", "shareable", "none", "keep-id", "auto", "nomap", "pod"}


def create_spec(inspect: Json, *, image: str, unsaid: Unsaid) -> Json:
    """Return the body of the request that makes the container again, from the image `image` (name or id)."""
    spec: Json = {"name": inspect["Name"], "image": image}
    for target, source, convert in _TABLE:
        value = look_up(inspect, source)
        if value not in (None, "", [], {}, 0, False):
            _put(spec, target, convert(value))
        elif value == 0 and target == "stop_timeout":
            spec["stop_timeout"] = 0  # at once, which is not the default of ten seconds
    spec |= _entrypoint(inspect, unsaid)
    spec["env"] = environment(inspect, unsaid)
    spec |= _security(inspect)
    spec |= _mounts(inspect)
    spec |= _network(inspect)
    spec |= _namespaces(inspect)
    spec |= _secrets(inspect, unsaid)
    spec["sysctl"] = dict(unsaid.sysctl)
    spec["init"] = (look_up(inspect, "Config.Annotations") or {}).get(_INIT) == "TRUE"
    spec["dependencyContainers"] = list(inspect.get("Dependencies") or [])
    spec["pod"] = unsaid.pod
    return {name: value for name, value in spec.items() if value is not False and value not in (None, [], {}, "")}


def look_up(data: Json, path: str) -> Any:
    """Return what is at the dotted `path`, None where there is nothing."""
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _put(spec: Json, path: str, value: Any) -> None:
    if value in (None, "", [], {}):
        return
    *parents, last = path.split(".")
    for part in parents:
        spec = spec.setdefault(part, {})
    spec[last] = value


def _entrypoint(inspect: Json, unsaid: Unsaid) -> Json:
    entrypoint = look_up(inspect, "Config.Entrypoint")
    if not entrypoint:
        return {}
    if isinstance(entrypoint, list):
        return {"entrypoint": entrypoint}
    # Services before 5.0 join it with blanks, so one with blanks inside can only be told where it is the image's own.
    if entrypoint == " ".join(unsaid.image_entrypoint):
        return {"entrypoint": list(unsaid.image_entrypoint)}
    try:
        return {"entrypoint": shlex.split(entrypoint)}
    except ValueError:
        return {"entrypoint": entrypoint.split(" ")}


def environment(inspect: Json, unsaid: Unsaid) -> dict[str, str]:
    """Return the variables that somebody has set, without the image's, Podman's own, and those that hold secrets.

    HOME and PATH stay also where Podman chose them: it might choose otherwise next time.
    """
    of_image = set(unsaid.image_environment) | {"container=podman", f"HOSTNAME={look_up(inspect, 'Config.Hostname')}"}
    found = {}
    for text in look_up(inspect, "Config.Env") or []:
        name, _, value = text.partition("=")
        if text not in of_image and name not in unsaid.secret_environment:
            found[name] = value
    return found


def _security(inspect: Json) -> Json:
    spec: Json = {}
    for option in look_up(inspect, "HostConfig.SecurityOpt") or []:
        name, _, value = option.partition("=")
        match name:
            case "no-new-privileges":
                spec["no_new_privileges"] = value != "false"
            case "seccomp":
                spec["seccomp_profile_path"] = value
            case "label":
                spec.setdefault("selinux_opts", []).append(value)
            case "apparmor":
                spec["apparmor_profile"] = value
            case "mask":
                spec.setdefault("mask", []).extend(value.split(":"))
            case "unmask":
                spec.setdefault("unmask", []).extend(value.split(":"))
    return spec


def _mounts(inspect: Json) -> Json:
    volumes, mounts = [], []
    for mount in inspect.get("Mounts") or []:
        # `U` would give the restored files another owner
        options = [option for option in mount.get("Options") or [] if option != "U"]
        options.append("rw" if mount.get("RW") else "ro")
        if mount.get("Propagation"):
            options.append(mount["Propagation"])
        if mount["Type"] == "volume":
            volumes.append({"Name": mount["Name"], "Dest": mount["Destination"], "Options": options})
        elif mount["Type"] == "bind":
            mounts.append(
                {"destination": mount["Destination"], "type": "bind", "source": mount["Source"], "options": options}
            )
    for destination, options in (look_up(inspect, "HostConfig.Tmpfs") or {}).items():
        mounts.append(
            {
                "destination": destination,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": [option for option in options.split(",") if option],
            }
        )
    return {"volumes": volumes, "mounts": mounts}


def _network(inspect: Json) -> Json:
    mode = look_up(inspect, "HostConfig.NetworkMode") or "bridge"
    spec: Json = {"portmappings": _ports(inspect)}
    kind, _, value = mode.partition(":")
    if kind == "container":
        spec["netns"] = {"nsmode": "container", "value": value}
    elif kind == "ns":
        spec["netns"] = {"nsmode": "path", "value": value}
    else:
        spec["netns"] = {"nsmode": "bridge" if kind == "default" else kind}
        if value:
            spec["network_options"] = {kind: value.split(",")}
    if spec["netns"]["nsmode"] == "bridge":
        short = inspect["Id"][:12]
        spec["networks"] = {
            name: _attachment(attached or {}, short)
            for name, attached in (look_up(inspect, "NetworkSettings.Networks") or {}).items()
        }
    return spec


def _attachment(attached: Json, short_id: str) -> Json:
    entry: Json = {"aliases": [alias for alias in attached.get("Aliases") or [] if alias != short_id]}
    addresses = [attached.get("IPAddress"), attached.get("GlobalIPv6Address")]
    entry["static_ips"] = [address for address in addresses if address]
    entry["static_mac"] = attached.get("MacAddress")
    return {name: value for name, value in entry.items() if value}


def _ports(inspect: Json) -> list[Json]:
    ports: list[Json] = []
    for inside, bindings in (look_up(inspect, "HostConfig.PortBindings") or {}).items():
        number, _, protocol = inside.partition("/")
        ports.extend(
            {
                "container_port": int(number),
                "protocol": protocol or "tcp",
                "host_ip": binding.get("HostIp", ""),
                "host_port": int(binding["HostPort"]),
            }
            for binding in bindings or []
        )
    return ports


def _namespaces(inspect: Json) -> Json:
    spec: Json = {}
    for target, source in _NAMESPACES:
        mode, _, value = (look_up(inspect, f"HostConfig.{source}") or "").partition(":")
        if mode in {"container", "path", "ns"}:
            spec[target] = {"nsmode": "path" if mode == "ns" else mode, "value": value}
        elif mode in _NAMESPACE_MODES:
            spec[target] = {"nsmode": mode, "value": value} if value else {"nsmode": mode}
    hostname = look_up(inspect, "Config.Hostname")
    if hostname != inspect["Id"][:12] and spec.get("utsns", {}).get("nsmode") not in {"host", "container"}:
        spec["hostname"] = hostname
    return spec


def _secrets(inspect: Json, unsaid: Unsaid) -> Json:
    mounted = [
        {
            "Source": secret["Name"],
            "Target": unsaid.secret_targets.get(secret["Name"], secret["Name"]),
            "UID": secret.get("UID", 0),
            "GID": secret.get("GID", 0),
            "Mode": secret.get("Mode", 0o444),
        }
        for secret in look_up(inspect, "Config.Secrets") or []
    ]
    return {"secrets": mounted, "secret_env": dict(unsaid.secret_environment)}


def secrets_in_command(command: Sequence[str]) -> Unsaid:
    """Return what the command line that made a container (`Config.CreateCommand`) says about its secrets; may be nothing."""
    in_environment: dict[str, str] = {}
    targets: dict[str, str] = {}
    for position, word in enumerate(command):
        if word == "--secret" and position + 1 < len(command):
            text = command[position + 1]
        elif word.startswith("--secret="):
            text = word.removeprefix("--secret=")
        else:
            continue
        name, *options = text.split(",")
        given = dict(option.partition("=")[::2] for option in options)
        target = given.get("target", name)
        if given.get("type") == "env":
            in_environment[target] = name
        elif target != name:
            targets[name] = target
    return Unsaid(secret_environment=in_environment, secret_targets=targets)


def without_secrets(inspect: Json, secret_environment: Mapping[str, str]) -> Json:
    """Return the inspect data without the values of secrets, which Podman shows among the variables."""
    config = dict(inspect["Config"])
    config["Env"] = [text for text in config.get("Env") or [] if text.partition("=")[0] not in secret_environment]
    return {**inspect, "Config": config}
