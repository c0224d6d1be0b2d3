"""Whose backup works on a container: a claim on the host itself, where every backup program of ours sees it.

Podman has nowhere to write a note on a container, so the claim is an empty volume whose name follows from the container's
id: the service makes it for one of two who ask. Its labels say who holds it. The guard removes it when the backup dies.
"""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab_backup.errors import BusyError
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError, PodmanNotFoundError

PREFIX = "lab-backup-claim-"
"""Volumes called so are claims; they are never backed up."""

LABEL = "lab-backup."

LEASE = timedelta(hours=24)
"""How long a claim of another host is respected. There is no renewing it, for labels stay as they are made."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that we hold."""

    volume: str
    token: str


def take(podman: Podman, container: str, *, backup: str) -> Claim:
    """Claim the container with the id `container` for `backup`. Raises BusyError where a living backup holds it."""
    volume = PREFIX + container[:32]
    labels = {
        f"{LABEL}token": backup,
        f"{LABEL}host": socket.gethostname(),
        f"{LABEL}process": process_identity(os.getpid()),
        f"{LABEL}expires": (datetime.now(UTC) + LEASE).isoformat(timespec="seconds"),
    }
    for _ in range(2):
        try:
            podman.post("volumes/create", "claim the container", {"Name": volume, "Label": labels, "Labels": labels})
        except PodmanError:
            there = holder(podman, volume)
            if there is None:
                continue
            if not is_abandoned(there, now=datetime.now(UTC)):
                raise BusyError(
                    f"container {container[:12]} is being backed up already, by {there.get(f'{LABEL}host', 'somebody')}",
                    hint=f"wait for it; should it be dead: podman volume rm {volume}",
                ) from None
            release(podman, Claim(volume, there.get(f"{LABEL}token", "")))
        else:
            return Claim(volume, backup)
    raise BusyError(f"somebody else claims container {container[:12]} at this moment", hint="try again")


def holder(podman: Podman, volume: str) -> dict[str, str] | None:
    """Return the labels of the claim `volume`, None where there is none."""
    try:
        return dict(podman.get(f"volumes/{volume}/json", "look at a claim").get("Labels") or {})
    except PodmanNotFoundError:
        return None


def release(podman: Podman, claim: Claim) -> None:
    """Give a claim back; one that somebody else has taken meanwhile stays. Raises PodmanError."""
    there = holder(podman, claim.volume)
    if there is not None and there.get(f"{LABEL}token", "") == claim.token:
        podman.delete(f"volumes/{claim.volume}", "give a claim back")


def is_abandoned(labels: dict[str, str], *, now: datetime) -> bool:
    """Tell whether nobody holds a claim any more: its process was on this host and is gone, or its time is over."""
    boot, _, rest = labels.get(f"{LABEL}process", "").partition("/")
    namespace, _, process = rest.partition("/")
    pid = process.partition("/")[0]
    if pid.isdigit() and (boot, namespace) == _here():
        return process_identity(int(pid)) != labels[f"{LABEL}process"]
    try:
        expires = datetime.fromisoformat(labels[f"{LABEL}expires"])
    except (KeyError, ValueError):
        return True  # none that we could have written
    return expires.replace(tzinfo=expires.tzinfo or UTC) < now


def process_identity(pid: int) -> str:
    """Return boot, PID namespace, number and start time of a process: together never used again."""
    boot, namespace = _here()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        start = stat.rpartition(")")[2].split()[19]  # field 22 of proc(5), counted after the command's name
    except OSError:
        start = "gone"
    return f"{boot}/{namespace}/{pid}/{start}"


def _here() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot, str(Path("/proc/self/ns/pid").readlink())
