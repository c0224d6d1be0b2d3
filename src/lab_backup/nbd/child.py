"""Programs that work for this process and never outlive it."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from lab_backup.errors import NotFoundError
from lab_backup.units import KiB

STOP_TIMEOUT = 10.0
"""Seconds between asking a program to end and killing it."""

MAX_SAID = 16 * KiB
"""How much of what a program says is kept: the beginning, where the cause stands."""

_LAUNCHER = Path(__file__).with_name("launch.py")


class Child:
    """A running program. When this process dies, even by SIGKILL, the kernel kills the program.

    That signal is bound to the thread that started it, so each child has a thread of its own that waits for its end.
    """

    def __init__(self, command: Sequence[str], *, package: str, listener: socket.socket | None = None) -> None:
        """Start `command`; give it `listener`, a listening socket, as systemd would.

        Raises NotFoundError where the program is not installed; `package` is what Debian calls what is missing.
        The caller must `stop` it.
        """
        if shutil.which(command[0]) is None:
            raise NotFoundError(f"the program {command[0]} is not installed", hint=f"install {package}")
        # not a pipe: nobody has to empty it, and a grandchild that keeps it open holds up nobody
        self._stderr = os.fdopen(os.memfd_create("stderr"), "rb", buffering=0)
        self._last_words: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        fd = -1 if listener is None else listener.fileno()
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(fd), *command]
        threading.Thread(target=self._tend, args=(launcher, fd), name=f"tend {command[0]}", daemon=True).start()
        self._await_start()

    def _await_start(self) -> None:
        self._started.wait()
        if self._failure is not None:
            self._stderr.close()
            raise self._failure

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        if self._ended.is_set():
            return False
        try:  # the thread may not have come round to noticing its end
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    @property
    def said(self) -> str:
        """What it has said on stderr so far."""
        if self._last_words is not None:
            return self._last_words
        return os.pread(self._stderr.fileno(), MAX_SAID, 0).decode(errors="replace")

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for its end; return whether it ended."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End it, first politely, and wait until it is gone. May be called several times."""
        if self.alive:
            self._running.terminate()
            if not self.wait(STOP_TIMEOUT):
                self._running.kill()
                self.wait(STOP_TIMEOUT)
        if self._last_words is None:
            self._last_words = self.said
            self._stderr.close()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the program was never started")
        return self._process

    def _tend(self, launcher: list[str], fd: int) -> None:
        try:
            self._process = subprocess.Popen(
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[] if fd < 0 else [fd],
                env=os.environ | {"LC_ALL": "C"},  # what it says is matched against known texts
                cwd="/",
                process_group=0,  # Ctrl-C is ours to handle; it must not take the disk away under a running read
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        self._ended.set()
