"""What this host is at: load, memory, space."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")


def host_figures(directory: Path) -> dict[str, Any]:
    """Return load (of the last minute), processors, memory and the space where `directory` is, in bytes. What cannot be read is left out (proc(5))."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2), "processors": os.cpu_count() or 1}
    memory = _kilobytes(MEMINFO)
    found |= {
        name: memory[key] * 1024
        for name, key in (("memory_total", "MemTotal"), ("memory_available", "MemAvailable"))
        if key in memory
    }
    resident = _kilobytes(STATUS).get("VmRSS")
    if resident is not None:
        found["resident"] = resident * 1024
    try:
        space = shutil.disk_usage(directory)
    except OSError:
        return found
    return {**found, "cache_total": space.total, "cache_free": space.free}


def _kilobytes(path: Path) -> dict[str, int]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
