"""Messages to a syslog server: RFC 5424, over UDP (RFC 5426), TCP (RFC 6587, by counted octets), TLS (RFC 5425) or a unix socket."""

import os
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote, urlsplit

from lab_backup.errors import LabBackupError, UsageError

TIMEOUT = 10.0
FACILITY = 16  # local0
SEVERITIES = {"error": 3, "warning": 4, "info": 6}  # RFC 5424, 6.2.1
PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
_NAME = re.compile(r"[^!-~]")  # RFC 5424 allows printable ASCII in names
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class SyslogError(LabBackupError):
    """The server did not take the message."""


@dataclass(frozen=True, slots=True)
class SyslogAddress:
    """Where a server is: `kind` is udp, tcp, tls or unix, where `host` is the socket's path."""

    kind: str
    host: str
    port: int = 0


def parse(address: str) -> SyslogAddress:
    """Return what `syslog+udp://host:514`, `syslog+tcp://…`, `syslog+tls://…` or `syslog+unix:///dev/log` names. Raises UsageError."""
    scheme, _, kind = address.partition("://")[0].partition("+")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError("this is no address of a syslog server") from error
    if scheme == "syslog" and kind == "unix" and parts.path.startswith("/"):
        return SyslogAddress(kind, unquote(parts.path))
    if scheme != "syslog" or kind not in PORTS or not host or parts.username is not None:
        raise UsageError(
            "this is no address of a syslog server",
            hint="write syslog+tls://host:6514, +tcp, +udp, or syslog+unix:///dev/log",
        )
    return SyslogAddress(kind, host, port or PORTS[kind])


def message(severity: str, kind: str, text: str, *, when: datetime, host: str | None = None) -> bytes:
    """Return an RFC 5424 message. Line breaks become blanks, for many servers store a line each."""
    words = (host or socket.gethostname(), "lab-backup", str(os.getpid()), kind.replace(" ", "-"))
    named = " ".join(_NAME.sub("_", word)[:32] or "-" for word in words)
    plain = _CONTROL.sub("?", " ".join(text.split()))
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"<{FACILITY * 8 + SEVERITIES[severity]}>1 {stamp} {named} - \ufeff{plain}".encode(errors="replace")


def send(address: SyslogAddress, data: bytes) -> None:
    """Send a message. Raises SyslogError; over UDP nobody learns whether it came."""
    try:
        if address.kind == "unix":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
                local.settimeout(TIMEOUT)
                local.connect(address.host)
                local.send(data)
        elif address.kind == "udp":
            family, kind, number, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, number) as packet:
                packet.sendto(data, place)
        else:
            with socket.create_connection((address.host, address.port), timeout=TIMEOUT) as plain:
                framed = str(len(data)).encode() + b" " + data
                if address.kind == "tls":
                    with ssl.create_default_context().wrap_socket(plain, server_hostname=address.host) as secure:
                        secure.sendall(framed)
                else:
                    plain.sendall(framed)
    except OSError as error:
        raise SyslogError(
            f"the syslog server {address.host} did not take the message: {error.strerror or type(error).__name__}",
            hint="check address, port and certificate",
        ) from error
