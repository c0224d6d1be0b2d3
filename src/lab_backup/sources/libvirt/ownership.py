"""Whose backup runs on a VM: a claim in the domain's own metadata, where every backup program of ours sees it.

The element `owner` in our XML namespace holds who claimed the VM, for which repository and backup, and until when. It
is renewed while the backup lives. Only a claim of ours that has run out, or whose process is dead, may be broken; a job
without a claim belongs to somebody else.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainSetMetadata
"""

import os
import secrets
import socket
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from xml.etree.ElementTree import Element, tostring

import libvirt
from defusedxml.ElementTree import ParseError, fromstring

from lab_backup.errors import BusyError
from lab_backup.sources.libvirt.errors import translate, translated

NAMESPACE = "urn:lab-backup:owner:1"
_PREFIX = "lab-backup"

LEASE = timedelta(minutes=5)
"""How long a claim is good without being renewed."""

RENEWAL = 30.0
"""Seconds between two renewals of a claim."""

WATCH = 2 * RENEWAL + 5
"""Seconds that an expired claim of another host is watched: its clock, or ours, may be wrong, but it is alive if it moves."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A claim on a VM. `process` says which one on `host` holds it, in words that never name a later process."""

    host: str
    process: str
    token: str
    repository: str
    backup: str
    expires: datetime

    @classmethod
    def new(cls, repository: str, backup: str, *, now: datetime) -> Self:
        """Return a claim of this process."""
        return cls(
            host=socket.gethostname(),
            process=process_identity(os.getpid()),
            token=secrets.token_hex(6),
            repository=repository,
            backup=backup,
            expires=now + LEASE,
        )

    def renewed(self, now: datetime) -> "Owner":
        """Return the claim with a new end."""
        return replace(self, expires=now + LEASE)

    def to_xml(self) -> str:
        """Return the element as libvirt wants it: it adds the namespace itself."""
        return tostring(
            Element(
                "owner",
                host=self.host,
                process=self.process,
                token=self.token,
                repository=self.repository,
                backup=self.backup,
                expires=self.expires.astimezone(UTC).isoformat(timespec="seconds"),
            ),
            encoding="unicode",
        )

    @classmethod
    def from_xml(cls, text: str) -> "Owner | None":
        """Read a claim; None where the text is none that we could have written."""
        try:
            element = fromstring(text)
            values = {name: element.attrib[name] for name in ("host", "process", "token", "repository", "backup")}
            expires = datetime.fromisoformat(element.attrib["expires"])
        except (ParseError, KeyError, ValueError):
            return None
        return cls(**values, expires=expires if expires.tzinfo else expires.replace(tzinfo=UTC))

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone; false where this host cannot tell."""
        boot, namespace, pid, _start = self.process.split("/", 3) if self.process.count("/") == 3 else ("", "", "0", "")
        if not pid.isdigit() or (boot, namespace) != _here():
            return False
        return process_identity(int(pid)) != self.process

    def describe(self) -> str:
        """Return who this is, for a message."""
        return f"backup {self.backup} on {self.host}"


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


def _target(domain: Any) -> int:
    return int(libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def read(domain: Any) -> Owner | None:
    """Return the claim on `domain`, or None."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, _target(domain))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise translate(error, "see whether another backup of the VM is running") from error
    return Owner.from_xml(text)


def write(domain: Any, owner: Owner | None) -> None:
    """Put the claim of `owner` on `domain`, or take away the one that is there."""
    text = None if owner is None else owner.to_xml()
    with translated("mark the VM as being backed up"):
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _PREFIX, NAMESPACE, _target(domain))


def release(domain: Any, token: str) -> None:
    """Take away the claim that has `token`; another one is left alone."""
    owner = read(domain)
    if owner is not None and owner.token == token:
        write(domain, None)


def is_abandoned(domain: Any, owner: Owner, *, watch: float = WATCH) -> bool:
    """Tell whether nobody holds the claim of `owner` any more; may take `watch` seconds to find out.

    A claim whose process ran here is abandoned when the process is gone. Any other is so when it has run out and is not
    renewed while we watch.
    """
    if owner.is_dead:
        return True
    if datetime.now(UTC) < owner.expires:
        return False
    deadline = time.monotonic() + watch
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch))
        if read(domain) != owner:
            return False
    return True


def refuse_if_claimed(domain: Any, *, watch: float = WATCH) -> Owner | None:
    """Return the abandoned claim on `domain`, or None where there is no claim. Raises BusyError for a living one."""
    owner = read(domain)
    if owner is None or is_abandoned(domain, owner, watch=watch):
        return owner
    raise BusyError(
        f"VM {domain.name()!r} is being backed up already: {owner.describe()}",
        hint=f"wait for it; should it be dead, its claim runs out at {owner.expires.isoformat(timespec='seconds')}",
    )
