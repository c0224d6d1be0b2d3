"""Addresses of NFS storages: `nfs://server[:port]/export/path?options`."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from lab_backup.errors import UsageError

STANDARD_PORT = 2049
_FORM = "write nfs://server/export/path"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?")
# nfs(5). Everything else either weakens what a storage promises (soft, noac, nolock) or is for file systems that one works on.
_OPTIONS = {
    "vers": re.compile(r"[34](\.[0-2])?"),
    "proto": re.compile(r"tcp6?|rdma6?"),
    "sec": re.compile(r"sys|krb5[ip]?"),
    "timeo": re.compile(r"[1-9][0-9]{0,4}"),
    "retrans": re.compile(r"[0-9]{1,3}"),
    "rsize": re.compile(r"[1-9][0-9]{3,7}"),
    "wsize": re.compile(r"[1-9][0-9]{3,7}"),
    "nconnect": re.compile(r"[1-9]|1[0-6]"),
    "clientaddr": re.compile(r"[0-9A-Fa-f:.]+"),
}
# `hard`: what could not be written is tried again for ever, never reported as written. The rest: nothing on it can act on this host.
# And what another host has just stored must not be taken for absent because it was a moment ago.
_ALWAYS = ("hard", "retry=0", "lookupcache=positive", "nosuid", "nodev", "noexec", "noatime")


@dataclass(frozen=True, slots=True)
class Address:
    """A folder of a server. `path` is absolute; `options` are mount options, as mount(8) takes them."""

    server: str
    path: str
    options: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """What is mounted, as mount(8) and /proc/self/mountinfo write it."""
        host = f"[{self.server}]" if ":" in self.server else self.server
        return f"{host}:{self.path}"

    @property
    def url(self) -> str:
        """The address without options."""
        host = f"[{self.server}]" if ":" in self.server else self.server
        port = f":{self.port}" if self.port != STANDARD_PORT else ""
        return f"nfs://{host}{port}{self.path}"

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.option("port") or STANDARD_PORT)

    def option(self, name: str) -> str | None:
        """Return the value of a mount option that was asked for, None where it was not."""
        return next(
            (value for key, _, value in (option.partition("=") for option in self.options) if key == name), None
        )

    @property
    def parent(self) -> "Address":
        """The folder that holds it; the server's root holds itself."""
        return Address(self.server, self.path.rpartition("/")[0] or "/", self.options)

    @property
    def name(self) -> str:
        """Its name there."""
        return self.path.rpartition("/")[2]

    @property
    def mount_options(self) -> str:
        """All options for mount(8)."""
        return ",".join((*_ALWAYS, *self.options))


def parse(url: str) -> Address:
    """Return the address that `url` means. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError("the NFS address is not a valid URL", hint=_FORM) from error
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "NFS knows no users in its address", hint="the server trusts hosts, or Kerberos tickets with ?sec=krb5p"
        )
    server, path = parts.hostname or "", unquote(parts.path)
    if not _HOST.fullmatch(server):
        raise UsageError("the NFS address names no server", hint=_FORM)
    names = [name for name in path.split("/") if name]
    if not names or any(name in {".", ".."} or not name.isprintable() for name in names):
        raise UsageError("the NFS address names no folder of the server", hint=_FORM)
    if parts.fragment:
        raise UsageError("the NFS address holds a #", hint="write %23 for # in a folder's name")
    options = [f"port={port}"] if port is not None else []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        known = _OPTIONS.get(name)
        if known is None:
            raise UsageError(f"{name} is not an option of NFS addresses", hint=f"known: {', '.join(sorted(_OPTIONS))}")
        if not known.fullmatch(value):
            raise UsageError(f"{name}={value} is not possible", hint="nfs(5) says what is")
        options.append(f"{name}={value}")
    return Address(server, "/" + "/".join(names), tuple(options))
