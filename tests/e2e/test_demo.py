"""What everybody tries first works, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import pytest

from lab_backup.units import MiB

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]

_COMMAND = [str(Path(sys.executable).with_name("lab-backup")), "demo"]
_REPOSITORY = re.compile(r"repo init (/\S+)/repository")


@pytest.fixture
def environment() -> dict[str, str]:
    """Return an environment without a wish for KVM or TCG, so that the probe is run for real on whatever machine this is."""
    return {name: value for name, value in os.environ.items() if name != "LAB_BACKUP_DEMO_ACCEL"}


def test_the_demo_proves_what_it_claims(environment: dict[str, str]) -> None:
    """The demo succeeds, states both proofs, and no file or process of it remains."""
    done = subprocess.run(
        _COMMAND, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"proof: .* changed, .* read \(0\.\d+ % of the disk\)", done.stdout)
    assert re.search(r"proof: \d+ files and folders have their owner.*; \d+ SHA-256 are equal", done.stdout)
    assert "0 corrupt, 0 missing" in done.stdout
    assert re.search(r"proof: \d+ names in the volume are equal in everything", done.stdout)
    assert "proof: the service brought the container back" in done.stdout
    _assert_nothing_is_left(done.stdout)


def test_an_interrupted_demo_leaves_nothing(environment: dict[str, str]) -> None:
    """A Ctrl-C during the backup of the running guest ends everything within seconds, with the exit code for it."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(_COMMAND, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_for("lab-backup backup vm", output, process)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        assert process.returncode == 130
        _assert_nothing_is_left(output.read())


def _wait_for(text: str, output: IO[str], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 200
    while True:
        shown = os.pread(output.fileno(), MiB, 0).decode()
        if text in shown:
            return
        assert process.poll() is None, shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def _assert_nothing_is_left(output: str) -> None:
    found = _REPOSITORY.findall(output)
    assert found, output
    for folder in found:
        assert not Path(folder).exists()
        assert _processes_with(folder) == []
    assert _processes_with("lb-demo-") == []


def _processes_with(text: str) -> list[str]:
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in arguments:
            found.append(arguments)
    return found
