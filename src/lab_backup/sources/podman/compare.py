"""Whether two containers are alike, by what Podman tells about them. Pure functions."""

import re
from typing import Any

from lab_backup.sources.podman.spec import Json, look_up, own_annotations

_VOLATILE = {
    "Id", "Created", "State", "ExecIDs", "ResolvConfPath", "HostnamePath", "HostsPath", "StaticDir", "OCIConfigPath",
    "ConmonPidFile", "PidFile", "GraphDriver", "RestartCount", "SandboxKey", "SandboxID", "EndpointID", "CreateCommand",
    "SizeRw", "SizeRootFs", "Dependencies", "IDMappings", "CgroupPath", "Pod", "ContainerIDFile", "Path",
    "ImageDigest",  # of a manifest, which is made anew; the image itself has its id
}  # fmt: skip
"""What differs between any two containers, and what only tells how one was made."""


_MODES = ("NetworkMode", "IpcMode", "UTSMode", "PidMode", "UsernsMode", "CgroupMode")
_SHORT_ID = re.compile(r"[0-9a-f]{12}\Z")


def differences(before: Json, after: Json) -> list[str]:
    """Return the settings, in dotted form, in which two containers differ; what always differs is left out."""
    first, second = dict(_flat(_comparable(before), "")), dict(_flat(_comparable(after), ""))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _comparable(inspect: Json) -> Json:
    """Return the inspect data without what Podman derives from the id, and with what has no order in order."""
    config = {**inspect["Config"], "Annotations": own_annotations(look_up(inspect, "Config.Annotations") or {})}
    short = inspect["Id"][:12]
    config["Env"] = [text for text in config.get("Env") or [] if text != f"HOSTNAME={short}"]
    if config.get("Hostname") == short:
        config["Hostname"] = ""
    host = dict(inspect["HostConfig"])
    host["Binds"] = [
        ":".join((*bind.split(":")[:2], *sorted(bind.split(":")[-1].split(",")))) for bind in host.get("Binds") or []
    ]
    if inspect.get("Pod"):
        host |= {name: "pod" for name in _MODES if str(host.get(name)).startswith("container:")}
        host["CgroupParent"] = ""
    networks = {
        name: {
            **attached,
            "Aliases": [
                alias
                for alias in attached.get("Aliases") or []
                if not (inspect.get("Pod") and _SHORT_ID.match(alias)) and alias != short
            ],
        }
        for name, attached in (look_up(inspect, "NetworkSettings.Networks") or {}).items()
    }
    settings = {"Networks": networks, "Ports": look_up(inspect, "NetworkSettings.Ports")}
    return {**inspect, "Config": config, "HostConfig": host, "NetworkSettings": settings}


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            entry
            for name, inner in value.items()
            if name not in _VOLATILE
            for entry in _flat(inner, f"{path}.{name}" if path else name)
        ]
    if isinstance(value, list):
        return [(path, sorted(map(str, value)))] if value else []
    return [] if value in (None, "", False, 0) else [(path, value)]
