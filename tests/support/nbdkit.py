"""nbdkit processes for tests, and what libnbd's tools say about an export."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab_backup.nbd.address import UnixAddress
from support.waiting import wait_until


@contextmanager
def nbdkit(*arguments: str) -> Iterator[UnixAddress]:
    """Serve what `arguments` (options, filters, plugin, parameters) describe on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        path = Path(directory, "s")
        with running("nbdkit", f"--unix={path}", *arguments, ready=Path(directory, "pid")):
            yield UnixAddress(path)


@contextmanager
def running(program: str, *arguments: str, ready: Path) -> Iterator[None]:
    """Run nbdkit in the foreground until the context ends; it has written its pid to `ready` when it listens."""
    command = [program, "--foreground", "--exit-with-parent", f"--pidfile={ready}", *arguments]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: process.poll() is not None or (ready.exists() and ready.stat().st_size > 0))
            assert process.poll() is None, f"{command} ended at once"
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            finally:
                process.kill()


def uri(address: UnixAddress, export: str = "") -> str:
    """Return the address as libnbd's tools want it."""
    return f"nbd+unix:///{export}?socket={address.path}"


def nbdinfo_map(address: UnixAddress, context: str = "base:allocation") -> list[tuple[int, int, int]]:
    """Return offset, length and flags of each extent as nbdinfo reports them, equal neighbours joined."""
    said = run("nbdinfo", f"--map={context}", "--json", uri(address))
    joined: list[tuple[int, int, int]] = []
    for entry in json.loads(said):
        offset, length, flags = entry["offset"], entry["length"], entry["type"]
        if joined and joined[-1][2] == flags:
            offset, length = joined[-1][0], joined[-1][1] + length
            joined.pop()
        joined.append((offset, length, flags))
    return joined


def nbdcopy(source: UnixAddress, target: Path) -> bytes:
    """Return the export's content as nbdcopy writes it into `target`."""
    run("nbdcopy", uri(source), str(target))
    return target.read_bytes()


def run(*command: str) -> str:
    """Run a program to its end and return what it says."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
