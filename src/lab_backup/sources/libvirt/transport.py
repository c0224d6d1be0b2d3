"""How the NBD server inside QEMU is reached: by a socket of this host, through SSH, or over TLS. Never in clear text."""

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lab_backup.errors import UsageError
from lab_backup.nbd.address import Address, TcpAddress, UnixAddress
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.nbd.tunnel import SshHost, SshTunnel
from lab_backup.sources.libvirt import monitor, process
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.errors import HypervisorError, translated
from lab_backup.sources.libvirt.job import TlsServer, UnixServer
from lab_backup.sources.libvirt.scratch import make_directory, socket_name, socket_place

_PORTS = (49152, 65535)
"""The dynamic ports of RFC 6335; one of them is tried after the other until it is free."""

_SHORT_NAME = 20
"""Characters of a domain's name in the name of its private directory (virDomainDefGetShortName)."""


class Transport(ABC):
    """The way to one NBD server. `files` and `directories` are local and must not outlive the backup."""

    files: tuple[Path, ...] = ()
    directories: tuple[Path, ...] = ()

    @property
    @abstractmethod
    def server(self) -> UnixServer | TlsServer:
        """What the job's XML says about the server."""

    @abstractmethod
    def connect(self, export: str, context: str) -> NbdClient:
        """Open an export with one metadata context, once the job runs."""

    def prepare(self) -> None:
        """Make what QEMU needs before the job begins; `directories` name it."""
        return

    def another(self) -> bool:
        """Choose another address, as the one that `server` told is taken; false where there is no other."""
        return False

    def close(self) -> None:
        """Give up the way; clients are closed before."""
        return


class LocalTransport(Transport):
    """A socket of this host."""

    def __init__(self, uuid: str, token: str) -> None:
        """Look for a place for the socket of the VM with `uuid`."""
        qemu = process.find(uuid)
        self._place = socket_place(token, qemu)
        self._qemu = qemu
        self.files = (self._place.path,)
        self.directories = () if self._place.directory is None else (self._place.directory,)

    @property
    def server(self) -> UnixServer:
        """The socket."""
        return UnixServer(self._place.path)

    def prepare(self) -> None:
        """Make the directory for the socket, if it needs one of its own."""
        if self._place.directory is not None and self._qemu is not None:
            make_directory(self._place.directory, self._qemu)

    def connect(self, export: str, context: str) -> NbdClient:
        """Connect to the socket."""
        return NbdClient.connect(UnixAddress(self._place.path), export, contexts=[context])


class SshTransport(Transport):
    """A socket of another host, through an SSH connection of our own."""

    def __init__(self, hypervisor: Hypervisor, domain: Any, token: str) -> None:
        """Find the place for the socket on the host of `hypervisor`, whose URI also says how to log in."""
        self._host = ssh_host(hypervisor.uri)
        self._socket = _private_directory(hypervisor, domain) / socket_name(token)
        self._stack = ExitStack()
        self._tunnel: SshTunnel | None = None

    @property
    def server(self) -> UnixServer:
        """The socket on the other host."""
        return UnixServer(self._socket)

    def connect(self, export: str, context: str) -> NbdClient:
        """Connect to the near end of the tunnel."""
        if self._tunnel is None:
            self._tunnel = self._stack.enter_context(SshTunnel(self._host, str(self._socket)))
        try:
            return NbdClient.connect(self._tunnel.address, export, contexts=[context])
        except NbdConnectionError as error:
            raise HypervisorError(
                f"QEMU's socket {self._socket} on {self._host} cannot be reached: {self._tunnel.said or error}",
                hint="log in as root there: nobody else may use QEMU's sockets",
            ) from error

    def close(self) -> None:
        """End the tunnel."""
        self._stack.close()


class TlsTransport(Transport):
    """A TCP port of another host, with TLS and certificates on both sides."""

    def __init__(self, host: str, credentials: TlsCredentials) -> None:
        """Let QEMU listen where `host` is reached from here."""
        self._host = host
        self._credentials = credentials
        self._port = random.randint(*_PORTS)  # noqa: S311  it only has to be free
        self._tries = 20

    @property
    def server(self) -> TlsServer:
        """Address and port."""
        return TlsServer(_address_of(self._host), self._port)

    def another(self) -> bool:
        """Take another port, some times."""
        self._port = random.randint(*_PORTS)  # noqa: S311  it only has to be free
        self._tries -= 1
        return self._tries > 0

    def connect(self, export: str, context: str) -> NbdClient:
        """Connect, and check that the certificate is the host's."""
        address: Address = TcpAddress(self._host, self._port)
        return NbdClient.connect(address, export, contexts=[context], tls=self._credentials)


def choose(hypervisor: Hypervisor, domain: Any, token: str, tls: TlsCredentials | None) -> Transport:
    """Return the way to the disks of the running `domain`, the same that libvirt itself is reached by.

    Raises UsageError where that would be clear text over a network.
    """
    if hypervisor.is_local:
        with translated("read the UUID of the VM"):
            return LocalTransport(domain.UUIDString(), token)
    if hypervisor.transport in {"ssh", "libssh", "libssh2"}:
        return SshTransport(hypervisor, domain, token)
    host = urlsplit(hypervisor.uri).hostname
    if hypervisor.transport == "tls" and host is not None:
        return TlsTransport(host, tls or libvirt_credentials(hypervisor.uri))
    raise UsageError(
        f"disks cannot be read safely over the transport {hypervisor.transport!r} of {hypervisor.name}",
        hint="use qemu+ssh:// or qemu+tls://",
    )


def ssh_host(uri: str) -> SshHost:
    """Return how a `qemu+ssh://` URI says to log in (https://libvirt.org/uri.html): user, port, keyfile, no_verify."""
    parts, query = urlsplit(uri), _query(uri)
    if parts.hostname is None:
        raise UsageError("the libvirt URI names no host", hint="write qemu+ssh://USER@HOST/system")
    return SshHost(
        parts.hostname,
        user=parts.username,
        port=parts.port,
        identity=Path(query["keyfile"]) if "keyfile" in query else None,
        known_hosts=Path(query["known_hosts"]) if "known_hosts" in query else None,
        check_host_key=query.get("no_verify", "0") == "0",
    )


def libvirt_credentials(uri: str) -> TlsCredentials:
    """Return the certificates that libvirt's own client uses for `uri`: in `pkipath`, else in `/etc/pki`."""
    query = _query(uri)
    hostname = urlsplit(uri).hostname
    if "pkipath" in query:
        base = Path(query["pkipath"])
        return TlsCredentials(base / "cacert.pem", base / "clientcert.pem", base / "clientkey.pem", hostname)
    base = Path("/etc/pki")
    return TlsCredentials(
        base / "CA/cacert.pem", base / "libvirt/clientcert.pem", base / "libvirt/private/clientkey.pem", hostname
    )


def _query(uri: str) -> Mapping[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(uri).query).items()}


def _address_of(host: str) -> str:
    """Return the address by which `host` is reached from here; its own idea of its name may be a loopback address."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise HypervisorError(f"the name {host!r} has no address: {error}") from error


def _private_directory(hypervisor: Hypervisor, domain: Any) -> Path:
    """Return libvirt's private directory of a domain on another host: QEMU may make sockets there.

    Of the system's libvirt its place is known; of any other QEMU is asked, which libvirt remembers as a taint.
    """
    if urlsplit(hypervisor.uri).path == "/system":
        with translated("identify the VM"):
            return Path(f"/var/lib/libvirt/qemu/domain-{domain.ID()}-{domain.name()[:_SHORT_NAME]}")
    return monitor.private_directory(domain)
