"""Changing the request that makes a container, for another place or name, and seeing what it wants of its host. Pure functions."""

from collections.abc import Collection, Mapping
from typing import Any

from lab_backup.sources.podman.spec import Json


def renamed(spec: Json, name: str) -> tuple[Json, list[str]]:
    """Return the spec for a second container beside the first one, and in words what it had to lose for that."""
    spec = {**spec, "name": name}
    lost = []
    if spec.pop("portmappings", None):
        lost.append("its published ports")
    networks = {}
    for network, attached in (spec.get("networks") or {}).items():
        kept = {key: value for key, value in attached.items() if key not in {"static_ips", "static_mac"}}
        if kept != attached:
            lost.append(f"its addresses in the network {network}")
        networks[network] = kept
    if networks:
        spec["networks"] = networks
    if spec.pop("hostname", None):
        lost.append("its host name")
    return spec, lost


def without_addresses(spec: Json, taken: Collection[str]) -> tuple[Json, list[str]]:
    """Return the spec without the fixed addresses that are `taken` by now, and in words what it lost."""
    lost: list[str] = []
    networks = {}
    for network, attached in (spec.get("networks") or {}).items():
        gone = [address for address in attached.get("static_ips") or [] if address in taken]
        lost.extend(f"its address {address} in the network {network}, which another container has" for address in gone)
        networks[network] = (
            {key: value for key, value in attached.items() if key not in {"static_ips", "static_mac"}}
            if gone
            else attached
        )
    return ({**spec, "networks": networks}, lost) if lost else (spec, lost)


def with_volumes(spec: Json, names: Mapping[str, str]) -> Json:
    """Return the spec with volumes called otherwise: from the old name to the new one."""
    volumes = [{**volume, "Name": names.get(volume["Name"], volume["Name"])} for volume in spec.get("volumes") or []]
    return {**spec, "volumes": volumes} if volumes else spec


# What makes a container more than a box: (where in the spec, what to call it). Value-dependent ones are in `powers`.
_POWERS = (
    ("privileged", "all privileges on the host"),
    ("cap_add", "additional capabilities"),
    ("devices", "devices of the host"),
    ("selinux_opts", "other SELinux labels"),
    ("seccomp_profile_path", "another seccomp profile"),
    ("apparmor_profile", "another AppArmor profile"),
    ("unmask", "unmasked kernel files"),
    ("sysctl", "kernel settings"),
    ("cgroup_parent", "a place of its own among the control groups"),
)


def powers(spec: Json) -> list[str]:
    """Return, in words, what the container may do to its host; a forged backup would ask for it. Empty for a plain container."""
    found = [f"{words} ({_short(spec[name])})" for name, words in _POWERS if spec.get(name)]
    found.extend(
        f"files of the host: {mount.get('source')} at {mount.get('destination')}"
        for mount in spec.get("mounts") or []
        if mount.get("type") != "tmpfs"
    )
    # the host's user and control group namespaces are what containers have by default, the latter with control groups v1
    for name in ("netns", "utsns", "pidns", "ipcns"):
        mode = (spec.get(name) or {}).get("nsmode")
        if mode in {"host", "path"}:
            found.append(f"the host's {name.removesuffix('ns')} namespace")
    return found


def _short(value: Any) -> str:
    if value is True:
        return "privileged"
    if isinstance(value, list):
        return ", ".join(str(entry.get("path", entry)) if isinstance(entry, dict) else str(entry) for entry in value)
    return str(value)
