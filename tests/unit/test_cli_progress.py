"""Progress: a bar on a terminal, sparse lines elsewhere, nothing with --quiet."""

import io
import threading
from contextlib import ExitStack

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from lab_backup.cli.progress import Bar, Lines, describe, shown
from lab_backup.units import MiB


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def test_lines_come_every_ten_seconds() -> None:
    """A log gets one line at the start and one every ten seconds, however often bytes are counted."""
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    lines.start(100 * MiB, "backing up web")
    for second in range(26):
        clock.now = float(second)
        lines.advance(2 * MiB)
    assert stream.getvalue().splitlines() == [
        "backing up web: 100.0 MiB",
        " 22 % of 100.0 MiB, 2.2 MiB/s, 35.5 s left",
        " 42 % of 100.0 MiB, 2.1 MiB/s, 27.6 s left",
    ]


def test_each_phase_counts_anew() -> None:
    """The second phase starts at nothing, also where nobody knows how much there is to do."""
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    lines.start(10, "first")
    lines.advance(10)
    lines.start(None, "second")
    clock.now = 10.0
    lines.advance(20 * MiB)
    lines.note("by the way\x1b[2J")
    assert stream.getvalue().splitlines() == [
        "first: 10 B",
        "second",
        "20.0 MiB, 2.0 MiB/s",
        "note: by the way\\x1b[2J",
    ]


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (0, 100, 0.0, "  0 % of 100 B, 0 B/s"),
        (0, 0, 5.0, "0 B, 0 B/s"),
        (50, 100, 10.0, " 50 % of 100 B, 5 B/s, 10.0 s left"),
        (300, 100, 10.0, "100 % of 100 B, 30 B/s, 0.0 s left"),
    ],
)
def test_odd_amounts_are_described(done: int, total: int, seconds: float, expected: str) -> None:
    """No time yet, nothing to do, and more than announced are no reason to fail or to show nonsense."""
    assert describe(done, total, seconds) == expected


def test_the_bar_loses_no_byte_of_many_threads() -> None:
    """What several threads count between two drawings adds up."""
    bars = Bars(console=Console(file=io.StringIO()), auto_refresh=False)
    bar = Bar(bars, clock=Clock())
    bar.start(4000, "reading")

    def count() -> None:
        for _ in range(1000):
            bar.advance(1)

    with ExitStack() as started:
        for _ in range(4):
            thread = threading.Thread(target=count)
            thread.start()
            started.callback(thread.join)
    bar.finish()
    assert bars.tasks[0].completed == 4000


def test_a_new_phase_takes_the_place_of_the_old_one() -> None:
    """One bar is seen at a time, and long names are cut to leave room for the figures."""
    bars = Bars(console=Console(file=io.StringIO(), width=80), auto_refresh=False)
    bar = Bar(bars)
    bar.start(10, "first")
    bar.start(20, "backing up a VM with a very long name")
    assert [(task.total, task.description) for task in bars.tasks] == [(20, "backing up a VM…")]


def test_quiet_shows_notes_only(capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet nothing but what the operation has to say appears, and never on stdout."""
    with shown(quiet=True) as progress:
        progress.start(10, "reading")
        progress.advance(10)
        progress.note("will be replaced: /a")
    assert capsys.readouterr() == ("", "note: will be replaced: /a\n")


def test_a_log_gets_lines_and_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal, plain text is written."""
    with shown(quiet=False, environment={"TERM": "xterm"}) as progress:
        progress.start(2048, "reading")
    assert capsys.readouterr() == ("", "reading: 2.0 KiB\n")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar with rate and remaining time is drawn on stderr; a dumb one gets lines."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with shown(quiet=False, environment={"TERM": "xterm"}) as progress:
        assert isinstance(progress, Bar)
        progress.start(100 * MiB, "backing up web")
        progress.advance(50 * MiB)
    out, err = capsys.readouterr()
    assert out == ""
    assert "backing up web" in err
    assert "50 % of 100.0 MiB" in err
    with shown(quiet=False, environment={"TERM": "dumb"}) as progress:
        assert isinstance(progress, Lines)
