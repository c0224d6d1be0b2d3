"""Commands inside a container, with a time limit."""

import struct
import threading
import time
from collections.abc import Iterator

from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import CommandFailedError, PodmanError, PodmanUnreachableError

KEPT_OUTPUT = 2000
"""Bytes of a command's last words that an error quotes."""

FAILED = 1
"""The `status` of an error about a command that ran, and failed: running it once more would not help."""

_HEADER = struct.Struct(">BxxxI")  # stream (1: stdout, 2: stderr) and length, before each piece of output
_POLL = 0.05


def run_in_container(podman: Podman, container: str, command: str, *, timeout: float) -> str:
    """Run `command` by the container's own `/bin/sh -c`, as the container's user; return what it wrote.

    Raises CommandFailedError where it ends with another status than 0, cannot be started, or does not end within `timeout`
    seconds. In the last case it may still be running: Podman cannot end it from outside.
    """
    what = "run a command in the container"
    body = {"AttachStdout": True, "AttachStderr": True, "Cmd": ["/bin/sh", "-c", command]}
    session = podman.post(f"containers/{container}/exec", what, body)["Id"]
    deadline = time.monotonic() + timeout
    expired = threading.Event()
    output = b""
    try:
        with podman.stream(
            "post", f"exec/{session}/start", what, body={"Detach": False, "Tty": False}, timeout=timeout
        ) as pieces:
            for text in payloads(pieces):
                output = (output + text)[-KEPT_OUTPUT:]
                if time.monotonic() > deadline:
                    expired.set()
                    break
    except PodmanUnreachableError:
        if time.monotonic() < deadline:
            raise
        expired.set()
    while not expired.is_set():
        answer = podman.get(f"exec/{session}/json", what)
        if not answer["Running"]:
            return _judge(int(answer["ExitCode"]), output)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    raise CommandFailedError(
        f"a command in the container did not end within {timeout:g} s",
        hint="it may still be running there; give it more time, or make it end by itself",
        status=FAILED,
    )


def _judge(code: int, output: bytes) -> str:
    text = output.decode(errors="replace").strip()
    if code == 0:
        return text
    raise CommandFailedError(
        f"a command in the container ended with status {code}" + (f": {text.splitlines()[-1]}" if text else ""),
        hint="try it by hand: podman exec",
        status=FAILED,
    )


def payloads(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what a process wrote, without the frames in which the service wraps it. Raises PodmanError where they are broken."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _HEADER.size:
            stream, length = _HEADER.unpack_from(buffer)
            if stream > 3:
                raise PodmanError("the output of a command in the container cannot be understood")
            if len(buffer) < _HEADER.size + length:
                break
            yield buffer[_HEADER.size : _HEADER.size + length]
            buffer = buffer[_HEADER.size + length :]
