"""qemu-img, on images that libvirt does not hold open."""

import json
import subprocess
from pathlib import Path
from typing import Any

from lab_backup.sources.libvirt.errors import HypervisorError

TOOL_TIMEOUT = 120.0
"""Seconds for one command that does not touch the data: it reads or rewrites a few blocks of the image."""

COMMIT_TIMEOUT = 6 * 3600.0
"""Seconds for writing an overlay's data into the image below."""


def info(path: Path, image_format: str) -> Any:
    """Return what qemu-img knows of the image at `path`, which may be in use."""
    command = ["qemu-img", "info", "-U", "-f", image_format, "--output=json", "--", str(path)]
    return json.loads(run(command, f"look into image {path}"))


def backing(path: Path) -> tuple[Path, str]:
    """Return the image below the qcow2 overlay at `path`, and its format. Raises HypervisorError where that is not told."""
    found = info(path, "qcow2")
    try:
        return Path(found["full-backing-filename"]), str(found["backing-filename-format"])
    except KeyError as error:
        raise HypervisorError(f"image {path} does not tell what lies below it") from error


def commit(path: Path) -> None:
    """Write the data of the qcow2 overlay at `path` into the image below it."""
    run(["qemu-img", "commit", "-q", "-f", "qcow2", "--", str(path)], f"merge {path} back", COMMIT_TIMEOUT)


def run(command: list[str], doing: str, timeout: float = TOOL_TIMEOUT) -> str:
    """Return what the command writes. Raises HypervisorError with its own words where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise HypervisorError(f"cannot {doing}: {command[0]} is not installed", hint="install qemu-utils") from error
    except subprocess.TimeoutExpired as error:
        raise HypervisorError(f"cannot {doing}: {command[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise HypervisorError(f"cannot {doing}: {done.stderr.strip()}")
    return done.stdout
