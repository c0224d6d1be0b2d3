"""Freezing the file systems inside the guest through its agent, for the moment in which the backup begins.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainFSFreeze
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import libvirt

from lab_backup.sources.libvirt.bounded import within
from lab_backup.sources.libvirt.errors import QuiesceError
from lab_backup.sources.source import Consistency, Quiesce

FREEZE_TIMEOUT = 30.0
"""Seconds for the guest to flush and freeze. Databases that flush gigabytes need some; applications wait meanwhile."""

THAW_TIMEOUT = 30.0
"""Seconds for one attempt to thaw."""

GRACE = 6.0
"""Seconds that libvirt may take beyond the agent's timeout: it first waits 5 s for the agent to notice it."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """What came of freezing. `pending` says that the guest may be frozen, now or later, and must be thawed."""

    consistency: Consistency
    file_systems: int = 0
    pending: bool = False
    warning: str | None = None
    note: str | None = None


def obstacle(agent: str | None, *, paused: bool) -> str | None:
    """Return why the guest cannot be frozen, or None. `agent` is the state of its channel, None without a channel."""
    if paused:
        return "the VM is paused"
    if agent is None:
        return "the VM has no guest agent channel"
    if agent != "connected":
        return "no guest agent answers"
    return None


def freeze(
    domain: Any,
    mode: Quiesce,
    agent: str | None,
    *,
    paused: bool,
    before: Callable[[], None],
    timeout: float = FREEZE_TIMEOUT,
) -> Freeze:
    """Freeze the guest's file systems as `mode` says. `before` is called just before the guest is told to.

    Never takes much longer than `timeout` seconds. Raises QuiesceError with Quiesce.REQUIRE where it cannot be done; the
    guest may then be frozen nevertheless, if `before` was called.
    """
    if mode is Quiesce.OFF:
        return Freeze(Consistency.CRASH)
    reason = obstacle(agent, paused=paused)
    if reason is not None:
        if mode is Quiesce.REQUIRE:
            raise QuiesceError(
                f"the file systems of VM {domain.name()!r} cannot be frozen: {reason}",
                hint="install and start qemu-guest-agent in the guest, or use --quiesce auto",
            )
        return Freeze(Consistency.CRASH, note=f"crash-consistent: {reason}")
    before()
    try:
        count = _freeze(domain, timeout)
    except (TimeoutError, libvirt.libvirtError) as error:
        reason = _reason(error, timeout)
        if mode is Quiesce.REQUIRE:
            raise QuiesceError(
                f"the file systems of VM {domain.name()!r} could not be frozen: {reason}",
                hint="look at the log of qemu-guest-agent in the guest",
            ) from error
        return Freeze(
            Consistency.CRASH, pending=True, warning=f"crash-consistent: the guest could not be frozen: {reason}"
        )
    if count == 0:
        return Freeze(Consistency.CRASH, pending=True, note="crash-consistent: the guest has no file system to freeze")
    return Freeze(Consistency.FILESYSTEM, file_systems=count, pending=True)


def thaw(domain: Any, *, timeout: float = THAW_TIMEOUT) -> int:
    """Thaw the guest's file systems; return how many were frozen. Takes little more than `timeout` seconds.

    Raises TimeoutError or libvirtError where the agent does not do it; the call may be repeated.
    """
    with _patience(domain, timeout):
        return int(within(timeout + GRACE, domain.fsThaw))


def _freeze(domain: Any, timeout: float) -> int:
    with _patience(domain, timeout):
        return int(within(timeout + GRACE, domain.fsFreeze))


@contextmanager
def _patience(domain: Any, timeout: float) -> Iterator[None]:
    """Make libvirt itself give up on the agent after `timeout`: else its lock on the agent would outlast our patience.

    A domain starts without a limit; that is put back.
    """
    with suppress(libvirt.libvirtError, TimeoutError):
        within(GRACE, lambda: domain.agentSetResponseTimeout(max(1, int(timeout)), 0))
    try:
        yield
    finally:
        with suppress(libvirt.libvirtError, TimeoutError):
            within(GRACE, lambda: domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0))


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, libvirt.libvirtError):
        return str(error.get_error_message())
    return f"the agent did not answer within {timeout:.0f} s"
