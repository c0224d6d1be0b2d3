"""Run a command and see what it costs: time, memory, bytes read."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lab_backup.units import KiB

SAMPLE_SECONDS = 0.02
TIMEOUT = 3600


@dataclass(frozen=True)
class Cost:
    """Wall and processor seconds; the process's peak memory in all (VmHWM) and anonymous (RssAnon, sampled); bytes it read.

    `bytes_read` are those of all read calls (rchar), so whatever comes from the page cache counts, and what a memory map
    shows does not.
    """

    seconds: float
    cpu_seconds: float
    peak: int
    peak_anonymous: int
    bytes_read: int
    output: str


class CommandFailedError(Exception):
    """A measured command did not succeed; the figures would mean nothing."""


def run(
    command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Cost:
    """Run the command to its end and return what it cost. Raises CommandFailedError with the end of its errors."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(environment or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        watch = _Watch(process.pid)
        alarm = threading.Timer(TIMEOUT, os.kill, (process.pid, signal.SIGKILL))
        alarm.start()
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but still there to be asked
            seconds = time.monotonic() - start
            bytes_read = _field(process.pid, "io", "rchar")
        except BaseException:
            process.kill()
            raise
        finally:
            alarm.cancel()
            peak_anonymous = watch.stop()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            tail = errors.read().decode(errors="replace")[-2000:]
            raise CommandFailedError(f"{command[0]} {command[1]} … ended with {process.returncode}:\n{tail}")
        output.seek(0)
        return Cost(
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * KiB,
            peak_anonymous,
            bytes_read,
            output.read().decode(errors="replace"),
        )


def middle(costs: Iterable[Cost]) -> Cost:
    """Return the run with the median time, but with the highest memory of all runs."""
    ordered = sorted(costs, key=lambda cost: cost.seconds)
    chosen = ordered[(len(ordered) - 1) // 2]
    return Cost(
        median(cost.seconds for cost in ordered),
        chosen.cpu_seconds,
        max(cost.peak for cost in ordered),
        max(cost.peak_anonymous for cost in ordered),
        chosen.bytes_read,
        chosen.output,
    )


def stored_bytes(folder: Path) -> int:
    """Return the size of all files below `folder` (or of the one file), holes not counted."""
    paths = [folder] if folder.is_file() else folder.rglob("*")
    return sum(
        min(status.st_size, status.st_blocks * 512) for path in paths if path.is_file() and (status := path.stat())
    )


class _Watch:
    """Samples the anonymous memory of a process from a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the sampling and return the highest value, in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, _field(self._pid, "status", "RssAnon") * KiB)


def _field(pid: int, file: str, name: str) -> int:
    """Return a number from a file of a process in /proc; 0 where it has none any more."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
    return 0
