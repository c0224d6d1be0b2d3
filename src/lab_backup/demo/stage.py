"""Where the demo talks: numbered steps, what they found, and the commands that a user would type."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab_backup.demo.command_line import CommandLine
from lab_backup.units import format_duration, format_size


@dataclass(frozen=True, slots=True)
class Row:
    """What a step cost, in seconds and bytes."""

    what: str
    seconds: float
    read: int | None = None
    stored: int | None = None


@dataclass(slots=True)
class Stage:
    """The console, how far we are, and the figures for the table at the end."""

    console: Console
    number: int = 0
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Announce a step, and say how long it took."""
        self.number += 1
        self.console.print(f"[bold]{self.number:2}[/] {escape(text)} …", highlight=False, soft_wrap=True)
        began = time.monotonic()
        yield
        self.console.print(f"   [green]done[/] in {format_duration(time.monotonic() - began)}", highlight=False)

    def say(self, text: str) -> None:
        """Print one finding below the current step."""
        self.console.print(f"   {escape(text)}", highlight=False, soft_wrap=True)

    def command(self, cli: CommandLine, *arguments: str) -> dict[str, Any]:
        """Show a command as a user would type it, run it, and show its warnings."""
        self.console.print(f"   [cyan]$ lab-backup {escape(' '.join(arguments))}[/]", highlight=False, soft_wrap=True)
        answer = cli.run(*arguments)
        for warning in answer.get("warnings", ()):
            self.console.print(f"   [yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
        return answer

    def timed(self, cli: CommandLine, what: str, *arguments: str) -> dict[str, Any]:
        """Run a command and note as `what` how long it took, and what it read and stored."""
        began = time.monotonic()
        answer = self.command(cli, *arguments)
        self.rows.append(Row(what, time.monotonic() - began, answer.get("bytes_read"), answer.get("bytes_stored")))
        return answer

    def show_table(self) -> None:
        """Print what all steps took."""
        table = Table(title="What it took", title_justify="left")
        table.add_column("")
        for heading in ("seconds", "bytes read", "bytes stored", "stored / read"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                row.what,
                f"{row.seconds:.1f}",
                "" if row.read is None else format_size(row.read),
                "" if row.stored is None else format_size(row.stored),
                f"{row.stored / row.read:.2f}"
                if row.read and row.stored is not None and row.stored <= row.read
                else "",
            )
        self.console.print(table)
