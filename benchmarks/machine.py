"""What the figures were measured on, without a name or path of that machine."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from lab_backup.units import KiB, format_size

LIBRARIES = ("blake3", "cryptography", "lmdb", "zstandard")
PROGRAMS = {
    "restic": ["restic", "version"],
    "borg": ["borg", "--version"],
    "qemu-img": ["qemu-img", "--version"],
    "virtnbdbackup": ["virtnbdbackup", "--version"],
    "libvirt": ["libvirtd", "--version"],
}


def describe(folder: Path) -> list[tuple[str, str]]:
    """Return lines about processor, memory, the disk that `folder` lies on, system and versions."""
    return [
        ("Processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("Memory", format_size(_memory())),
        ("File system", _file_system(folder)),
        ("System", f"{_distribution()}, Linux {platform.release()}"),
        ("Python", f"{platform.python_version()}; " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)),
        ("Others", ", ".join(filter(None, (_program(name, command) for name, command in PROGRAMS.items())))),
    ]


def load() -> float:
    """Return the load average of the last minute: above 1 before a run, the figures are worth little."""
    return os.getloadavg()[0]


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * KiB if found else 0


def _file_system(folder: Path) -> str:
    done = subprocess.run(
        ["stat", "--file-system", "--format", "%T", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def _distribution() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _program(name: str, command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{name} {found[0]}" if found else name
