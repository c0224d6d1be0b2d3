"""The QEMU process of a domain, seen from the host that it runs on."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_MASTER_KEY = "master-key.aes"


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A running QEMU: who it runs as, and the directory that libvirt has made for this one process, if it is known."""

    pid: int
    uid: int
    gid: int
    directory: Path | None


def find(uuid: str, proc: Path = Path("/proc")) -> QemuProcess | None:
    """Return the QEMU process of the domain with `uuid`, or None where it does not run on this host."""
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # processes come and go
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if _value(arguments, "-uuid") == uuid and "-name" in arguments:
                owner = (entry / "status").read_text(encoding="utf-8", errors="replace")
                return QemuProcess(
                    int(entry.name), _effective(owner, "Uid"), _effective(owner, "Gid"), _private(arguments)
                )
    return None


def _value(arguments: list[str], option: str) -> str | None:
    with suppress(ValueError, IndexError):
        return arguments[arguments.index(option) + 1]
    return None


def _effective(status: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+\d+\s+(\d+)", status, re.MULTILINE)
    return int(match[1]) if match else 0


def _private(arguments: list[str]) -> Path | None:
    """Return the domain's private directory: libvirt keeps the key to QEMU's secrets there and names it to QEMU."""
    for path in _secret_files(arguments):
        if path.name == _MASTER_KEY and path.parent.is_dir():
            return path.parent
    return None


def _secret_files(arguments: list[str]) -> Iterator[Path]:
    for option, value in pairwise(arguments):
        if option != "-object" or _MASTER_KEY not in value:
            continue
        if value.startswith("{"):
            with suppress(ValueError):
                yield Path(str(json.loads(value).get("file", "")))
        elif (match := re.search(r"(?:^|,)file=([^,]+)", value)) is not None:
            yield Path(match[1])
