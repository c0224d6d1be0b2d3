"""An SSH connection through which a unix socket of another host is reached."""

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab_backup.errors import AccessDeniedError, LabBackupError, NotFoundError, UsageError
from lab_backup.nbd.address import UnixAddress
from lab_backup.nbd.child import Child
from lab_backup.nbd.endpoint import Endpoint, private_socket_path

READY_POLL = 0.02
"""Seconds between two looks whether ssh listens yet; a connection takes some hundred milliseconds."""

ALIVE_INTERVAL = 15
"""Seconds of silence after which ssh asks the other side for a sign of life; it gives up after four of them."""

_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*")
_SOCKET = re.compile(r"/[A-Za-z0-9_.@+,=/-]*")


class TunnelError(LabBackupError):
    """The SSH connection cannot be made."""


@dataclass(frozen=True, slots=True)
class SshHost:
    """How to log in to a host. What is None here is left to the user's ssh configuration.

    `check_host_key` may be False only where the user has said so in so many words.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    check_host_key: bool = True

    def __post_init__(self) -> None:
        """Refuse what ssh would take for an option or something else than a name."""
        if not _HOST.fullmatch(self.host):
            raise UsageError(f"{self.host!r} is not a host name")
        if self.user is not None and not _USER.fullmatch(self.user):
            raise UsageError(f"{self.user!r} is not a user name")
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"{self.port} is not a port")
        for path in (self.identity, self.known_hosts):
            if path is not None and re.search(r'["\s$\x00-\x1f]', str(path)):
                raise UsageError(f"ssh cannot take the file name {str(path)!r}", hint="use one without blanks")
            if path is not None and not path.is_file():
                raise NotFoundError(f"the file {path}, named for ssh, does not exist")

    def arguments(self, timeout: float) -> list[str]:
        """Return ssh's arguments up to and including the host; nothing in them ever asks a person anything."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(max(1, round(timeout))),
            "ServerAliveInterval": str(ALIVE_INTERVAL),
            "ServerAliveCountMax": "4",
            "StrictHostKeyChecking": "yes" if self.check_host_key else "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
        }
        if self.known_hosts is not None:
            options |= {"UserKnownHostsFile": _percent(self.known_hosts), "GlobalKnownHostsFile": "/dev/null"}
        elif not self.check_host_key:
            options["UserKnownHostsFile"] = "/dev/null"
        if self.identity is not None:
            options |= {"IdentityFile": _percent(self.identity), "IdentitiesOnly": "yes"}
        if self.user is not None:
            options["User"] = self.user
        if self.port is not None:
            options["Port"] = str(self.port)
        return [f"-o{name}={value}" for name, value in options.items()] + ["--", self.host]

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{self.host}" if self.port is None else f"{user}{self.host}:{self.port}"


class SshTunnel:
    """A context manager: inside, connections to `address` arrive at `remote_socket` on the other host.

    ssh ends with this process, even if that is killed. A remote socket that does not exist shows only in the first
    connection, which the tunnel then closes; `said` holds ssh's words about it.
    """

    def __init__(self, host: SshHost, remote_socket: str, *, timeout: float = 30.0) -> None:
        """Prepare a tunnel; `timeout` (seconds) bounds connecting and logging in."""
        if not _SOCKET.fullmatch(remote_socket):
            raise UsageError(
                f"{remote_socket!r} cannot be the far end of a tunnel",
                hint="name the absolute path of a socket, made of letters, digits and . _ @ + , = -",
            )
        self._host = host
        self._remote = remote_socket
        self._timeout = timeout
        self._stack = ExitStack()
        self._child: Child | None = None
        self._address: UnixAddress | None = None

    @property
    def address(self) -> UnixAddress:
        """Where to connect; valid while the context is open, in this process and in others of the same user."""
        if self._address is None:
            raise RuntimeError("the tunnel was not opened")
        return self._address

    @property
    def alive(self) -> bool:
        """Whether ssh still runs."""
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int:
        """The process id of ssh."""
        if self._child is None:
            raise RuntimeError("the tunnel was not opened")
        return self._child.pid

    @property
    def said(self) -> str:
        """What ssh has said so far."""
        return "" if self._child is None else self._child.said.strip()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            with private_socket_path() as path:
                if not _SOCKET.fullmatch(str(path)):
                    raise UsageError(f"ssh cannot make a socket in {path.parent}", hint="set TMPDIR to /tmp")
                forward = ["-N", "-L", f"{path}:{self._remote}", "-oExitOnForwardFailure=yes"]
                command = ["ssh", *forward, *self._host.arguments(self._timeout)]
                self._child = Child(command, package="openssh-client")
                stack.callback(self._child.stop)
                self._await(path, self._child)
                endpoint = Endpoint(path)
            stack.callback(endpoint.close)
            self._address = endpoint.address
            self._stack = stack.pop_all()
        return self

    def _await(self, path: Path, child: Child) -> None:
        deadline = time.monotonic() + self._timeout
        while not _listens(path):
            if child.wait(READY_POLL):
                raise explain(self._host, child.said)
            if time.monotonic() > deadline:
                raise TunnelError(
                    f"no SSH connection to {self._host} within {self._timeout:.0f} s",
                    hint=f"try by hand: ssh {self._host.host} true",
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _listens(path: Path) -> bool:
    """Tell whether somebody listens at `path`, without connecting: that would already open the far end."""
    accepting = 0x10000  # __SO_ACCEPTCON in the kernel's table
    with Path("/proc/net/unix").open() as table:
        for line in table:
            fields = line.split()  # address, references, protocol, flags, type, state, inode, path
            if len(fields) == 8 and fields[7] == str(path):
                return bool(int(fields[3], 16) & accepting)
    return False


def _percent(path: Path) -> str:
    return str(path.absolute()).replace("%", "%%")


_CAUSES: list[tuple[str, type[LabBackupError], str, str | None]] = [
    (
        "Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        AccessDeniedError,
        "its host key is unknown or has changed",
        "compare the key's fingerprint with the host's own, then put it into known_hosts",
    ),
    ("Permission denied", AccessDeniedError, "it refuses the login", "check user, key, and the host's authorized_keys"),
    ("Could not resolve hostname", NotFoundError, "the name is unknown", "check the spelling"),
    ("Connection refused", TunnelError, "nothing answers at that port", "check that sshd runs there"),
    ("timed out|No route to host", TunnelError, "it cannot be reached", "check the network and the firewall"),
]


def explain(host: SshHost, said: str) -> LabBackupError:
    """Return the error that tells what ssh's last words `said` about `host`."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@")]
    words = lines[-1] if lines else "it ended without a word"
    for pattern, kind, text, hint in _CAUSES:
        if re.search(pattern, said):
            return kind(f"no SSH connection to {host}: {text} (ssh: {words})", hint=hint)
    return TunnelError(f"no SSH connection to {host} (ssh: {words})", hint=f"try by hand: ssh {host.host} true")
