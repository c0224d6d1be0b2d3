"""The connection to a hypervisor: opened in bounded time, noticed when it dies, opened again."""

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import libvirt

from lab_backup.errors import AccessDeniedError, NotFoundError
from lab_backup.sources.libvirt.bounded import within
from lab_backup.sources.libvirt.errors import (
    HypervisorUnreachableError,
    is_connection_loss,
    refused_uri,
    translate,
    translated,
)

OPEN_TIMEOUT = 30.0
"""Seconds for opening a connection; the first one probes QEMU for up to 8 s."""

KEEPALIVE_INTERVAL = 5
"""Seconds of silence after which libvirt asks whether the daemon is still there."""

KEEPALIVE_COUNT = 6
"""Questions without an answer before the connection counts as dead: half a minute altogether."""

RETURN_TIMEOUT = 60.0
"""Seconds that a restarting libvirtd may take to come back."""

_event_loop_lock = threading.Lock()
_event_loop: list[threading.Thread] = []


def _start_event_loop() -> None:
    """Run libvirt's event loop in a thread of this process; without one, keep-alive does not work.

    https://libvirt.org/html/libvirt-libvirt-host.html#virConnectSetKeepAlive
    """
    with _event_loop_lock:
        if _event_loop:
            return
        libvirt.registerErrorHandler(_no_error_output, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        # a timer that does nothing: an event loop that sleeps for ever would not see handles that are added to it
        libvirt.virEventAddTimeout(1000, _no_event, None)
        thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
        thread.start()
        _event_loop.append(thread)


def _no_error_output(_context: object, _error: object) -> None:
    """Keep libvirt from writing to the terminal what it raises as well."""


def _no_event(_timer: int, _opaque: object) -> None:
    """Do nothing, once a second."""


def shown(uri: str) -> str:
    """Return `uri` without anything that could be a secret, for messages and manifests."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return f"{parts.scheme}://{f'{user}@{host}' if user else host}{parts.path}"


class Hypervisor:
    """A libvirt connection that opens itself again after the daemon was restarted. Thread-safe."""

    def __init__(self, uri: str, *, timeout: float = OPEN_TIMEOUT) -> None:
        """Connect to `uri` within `timeout` seconds.

        Raises UsageError (not a URI that libvirt understands), AccessDeniedError, HypervisorUnreachableError.
        """
        self.uri = uri
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: Any = self._open()

    @property
    def name(self) -> str:
        """The URI without secrets."""
        return shown(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether QEMU runs on this host, where its sockets, files and processes can be reached directly."""
        parts = urlsplit(self.uri)
        return not parts.netloc and parts.scheme in {"qemu", "qemu+unix"}

    @property
    def transport(self) -> str:
        """How libvirt is reached: `unix`, `ssh`, `libssh`, `libssh2`, `tls`, `tcp`, `ext`."""
        scheme = urlsplit(self.uri).scheme
        if "+" in scheme:
            return scheme.partition("+")[2]
        return "tls" if urlsplit(self.uri).netloc else "unix"

    @property
    def connection(self) -> Any:
        """The virConnect, a living one: one that died is opened again, for which the daemon has a minute."""
        with self._lock:
            return self._living()

    def _living(self) -> Any:
        if self._is_alive():
            return self._connection
        self.close()
        deadline = time.monotonic() + RETURN_TIMEOUT
        while True:
            try:
                self._connection = self._open()
            except HypervisorUnreachableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return self._connection

    def domain(self, uuid: str) -> Any:
        """Return the virDomain with `uuid`. Raises NotFoundError."""
        for attempt in (0, 1):
            try:
                return self.connection.lookupByUUIDString(uuid)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    raise NotFoundError(f"there is no VM with UUID {uuid} at {self.name}") from error
                if attempt or not is_connection_loss(error):
                    raise translate(error, f"look up VM {uuid}") from error
        raise AssertionError

    def find(self, name: str) -> Any:
        """Return the virDomain called `name`, or whose UUID that is. Raises NotFoundError."""
        connection = self.connection
        try:
            return connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise translate(error, f"look up VM {name!r}") from error
        with suppress(ValueError), suppress(libvirt.libvirtError):
            return connection.lookupByUUIDString(str(UUID(name)))
        with translated("list the VMs"):
            known = sorted(domain.name() for domain in connection.listAllDomains())
        raise NotFoundError(
            f"there is no VM {name!r} at {self.name}",
            hint=f"VMs there: {', '.join(known)}" if known else "libvirt there knows no VM at all",
        )

    def close(self) -> None:
        """Let go of the connection; may be called several times."""
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_alive(self) -> bool:
        if self._connection is None:
            return False
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _open(self) -> Any:
        _start_event_loop()
        try:
            connection = within(self._timeout, lambda: libvirt.open(self.uri))
        except libvirt.libvirtError as error:
            raise self._refused(error) from error
        except TimeoutError as error:
            raise HypervisorUnreachableError(
                f"libvirt at {self.name} did not answer within {self._timeout:.0f} s",
                hint="see whether the host is up and libvirtd (or virtqemud) answers `virsh list` there",
            ) from error
        with suppress(libvirt.libvirtError):  # drivers inside this process have nobody to ask
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        return connection

    def _refused(self, error: Any) -> Exception:
        code, text = error.get_error_code(), error.get_error_message()
        if "Permission denied" in text:
            return AccessDeniedError(
                f"cannot connect to libvirt at {self.name}: {text}",
                hint="run as root, or add this user to the group that may use this libvirt",
            )
        if code in {libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}:
            return refused_uri(self.name)
        if code in {libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR}:
            return HypervisorUnreachableError(
                f"cannot connect to libvirt at {self.name}: {text}",
                hint="see whether libvirtd (or virtqemud) is running, and whether --connect names it",
                code=code,
            )
        return translate(error, f"connect to libvirt at {self.name}")
