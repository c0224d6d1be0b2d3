"""Where an NBD server listens."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 10809
"""The port that IANA assigned to NBD."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system of this host."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host name or IP address (IPv6 without brackets) and a port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress
