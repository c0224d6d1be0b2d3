"""Drawing progress on stderr: a bar on a terminal, a plain line now and then anywhere else, or nothing."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lab_backup.cli.printing import printable, tell
from lab_backup.operations.progress import Progress, Silent
from lab_backup.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

INTERVAL = 10.0
"""Seconds between two plain lines."""

REDRAW = 0.1
"""Seconds between two updates of the bar; thousands of chunks a second are counted in between."""

BAR_WIDTH = 14
RATE_WIDTH = 46
"""Columns for the bar, and for what `describe` says; what is being done gets the rest of the line."""


@contextmanager
def shown(*, quiet: bool, environment: Mapping[str, str] = os.environ) -> Iterator[Progress]:
    """Show the progress of what runs inside the block, in the way that suits stderr."""
    if quiet:
        yield _Quiet()
    elif sys.stderr.isatty() and environment.get("TERM", "dumb") != "dumb":
        with _bar() as bar:
            yield bar
    else:
        yield Lines(sys.stderr)


class _Quiet(Silent):
    """Shows nothing but notes of the operation."""

    def note(self, text: str) -> None:
        """Write it to stderr."""
        tell("note", text)


class Lines:
    """One line at the start of each phase, and one every `INTERVAL` seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `stream`; `clock` counts seconds."""
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = 0
        self._began = self._told = clock()

    def start(self, total_bytes: int | None, what: str) -> None:
        """Begin a phase."""
        with self._lock:
            self._total, self._done = total_bytes, 0
            self._began = self._told = self._clock()
            self._write(what if total_bytes is None else f"{what}: {format_size(total_bytes)}")

    def advance(self, count: int) -> None:
        """Count, and write a line if it is time for one."""
        with self._lock:
            self._done += count
            now = self._clock()
            if now - self._told >= INTERVAL:
                self._told = now
                self._write(describe(self._done, self._total, now - self._began))

    def note(self, text: str) -> None:
        """Write it as a line."""
        with self._lock:
            self._write(f"note: {text}")

    def _write(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()


def describe(done: int, total: int | None, seconds: float) -> str:
    """Return how far it is after `seconds`: the share that is done, the rate, and the time that is left."""
    rate = done / seconds if seconds > 0 else 0.0
    speed = f"{format_size(round(rate))}/s"
    if not total:
        return f"{format_size(done)}, {speed}"
    text = f"{min(100, done * 100 // total):3d} % of {format_size(total)}, {speed}"
    return f"{text}, {format_duration(max(0, total - done) / rate)} left" if rate else text


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """What `describe` says."""

        def render(self, task: object) -> Text:
            done, total = int(getattr(task, "completed", 0)), getattr(task, "total", None)
            seconds = getattr(task, "finished_time", None) or getattr(task, "elapsed", None) or 0.0
            return Text(describe(done, None if total is None else int(total), seconds) if done else "")

    whole = Column(no_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=BAR_WIDTH, table_column=whole),
        Rate(table_column=whole),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as bars:
        drawn = Bar(bars)
        yield drawn
        drawn.finish()


class Bar:
    """Progress as a bar of rich, one for each phase."""

    def __init__(self, bars: "Bars", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw with `bars`, which the caller has started."""
        self._bars = bars
        self._clock = clock
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._pending = 0
        self._drawn = 0.0

    def start(self, total_bytes: int | None, what: str) -> None:
        """Begin a phase in place of the one before."""
        with self._lock:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._pending = 0
            room = max(16, self._bars.console.width - BAR_WIDTH - RATE_WIDTH - len("⠋   "))
            text = printable(what)
            self._task = self._bars.add_task(text if len(text) <= room else f"{text[: room - 1]}…", total=total_bytes)

    def advance(self, count: int) -> None:
        """Count; the bar is told ten times a second."""
        with self._lock:
            self._pending += count
            now = self._clock()
            if now - self._drawn >= REDRAW:
                self._drawn = now
                self._flush()

    def note(self, text: str) -> None:
        """Write it above the bar."""
        self._bars.console.print(f"note: {printable(text)}", markup=False, highlight=False)

    def finish(self) -> None:
        """Draw what was counted last."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._task is not None and self._pending:
            self._bars.advance(self._task, self._pending)
            self._pending = 0
