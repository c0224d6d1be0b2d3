"""Run one program of the system to its end, for a bounded time."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab_backup.demo.errors import DemoError

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
"""Where programs are looked for: `mkfs.ext4` and `libvirtd` are not on an ordinary user's path in Debian."""


def run_tool(arguments: Sequence[str | Path], *, timeout: float, directory: Path | None = None) -> bytes:
    """Return what the program prints on standard output. Raises DemoError where it is missing, fails or takes longer.

    The program gets no standard input, the C locale, and `directory` to work in; `timeout` is in seconds.
    """
    name = str(arguments[0])
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=directory,
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise DemoError(f"the program {name} is not installed", hint="run make setup, which installs it") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{name} did not end within {timeout:g} seconds") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise DemoError(f"{name} failed ({done.returncode}): {' / '.join(reason) or 'it gave no reason'}")
    return done.stdout
