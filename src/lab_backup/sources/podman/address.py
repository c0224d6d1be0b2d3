"""Where a Podman service listens, as the user writes it."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from lab_backup.errors import UsageError
from lab_backup.nbd.tunnel import SshHost

ROOT_SOCKET = "/run/podman/podman.sock"
_FORMS = "unix:///PATH, ssh://[USER@]HOST[:PORT]/PATH or tcp://HOST:PORT"


@dataclass(frozen=True, slots=True)
class UnixService:
    """A socket on this host."""

    path: Path

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class SshService:
    """A socket on another host, reached by SSH."""

    login: SshHost
    socket: str

    def __str__(self) -> str:
        return f"ssh://{self.login}{self.socket}"


@dataclass(frozen=True, slots=True)
class TcpService:
    """A port behind TLS. `tls` holds `ca-cert.pem` and, where the server asks for one, `client-cert.pem` and `client-key.pem`.

    Without a folder the system's authorities count. `plain` is without TLS: whoever sees or alters the traffic is root there.
    """

    host: str
    port: int
    tls: Path | None = None
    plain: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


Service = UnixService | SshService | TcpService
"""Its text names the host without anything secret or local, for manifests and messages."""


def default_service(environment: Mapping[str, str] = os.environ, *, uid: int | None = None) -> str:
    """Return the URI of this user's own service: what `CONTAINER_HOST` says, or the socket that systemd makes for him."""
    given = environment.get("CONTAINER_HOST")
    if given:
        return given
    user = os.getuid() if uid is None else uid
    if user == 0:
        return f"unix://{ROOT_SOCKET}"
    return f"unix://{environment.get('XDG_RUNTIME_DIR', f'/run/user/{user}')}/podman/podman.sock"


def parse(uri: str) -> Service:
    """Return the service that `uri` names. Raises UsageError, NotFoundError for a missing key file.

    Options of `ssh://`: `keyfile`, `known_hosts`, `no_verify=1`; of `tcp://`: `tls` (a folder), `plain=1`.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise UsageError("the address of the Podman service cannot be read", hint=f"write {_FORMS}") from error
    if parts.password is not None:
        raise UsageError("no password belongs into the address of a Podman service", hint="use an SSH key")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    scheme = parts.scheme.removeprefix("http+")
    if scheme == "unix":
        _refuse_unknown(options, set())
        if parts.netloc or not path.startswith("/") or "\0" in path:
            raise UsageError(f"{uri!r} is no absolute path of a socket", hint="write unix:///run/podman/podman.sock")
        return UnixService(Path(path))
    if scheme == "ssh":
        _refuse_unknown(options, {"keyfile", "known_hosts", "no_verify"})
        login = SshHost(
            parts.hostname or "",
            user=unquote(parts.username) if parts.username else None,
            port=port,
            identity=_path(options, "keyfile"),
            known_hosts=_path(options, "known_hosts"),
            check_host_key=options.get("no_verify") != "1",
        )
        return SshService(login, path if path not in {"", "/"} else ROOT_SOCKET)
    if scheme == "tcp":
        _refuse_unknown(options, {"tls", "plain"})
        if not parts.hostname or port is None or path not in {"", "/"}:
            raise UsageError(f"{uri!r} names no host and port", hint="write tcp://HOST:PORT")
        plain = options.get("plain") == "1"
        if plain and not _is_loopback(parts.hostname):
            raise UsageError(
                "without TLS a Podman service gives the whole host away to everybody on the network",
                hint="leave plain=1 out and put TLS before it, or use ssh://",
            )
        return TcpService(parts.hostname, port, tls=_path(options, "tls"), plain=plain)
    raise UsageError(f"{parts.scheme or uri!r} is no way to a Podman service", hint=f"write {_FORMS}")


def _refuse_unknown(options: Mapping[str, str], known: set[str]) -> None:
    unknown = sorted(options.keys() - known)
    if unknown:
        raise UsageError(
            f"the address of the Podman service has an unknown option {unknown[0]!r}",
            hint=f"known here: {', '.join(sorted(known)) or 'none'}",
        )


def _path(options: Mapping[str, str], name: str) -> Path | None:
    return Path(options[name]) if options.get(name) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
