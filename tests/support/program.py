"""The real `lab-backup` as a process, as users and scripts run it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("lab-backup")
SECONDS = 120  # far beyond what any command of the tests needs on a busy machine

# What lets root ignore the modes of files; without these it is as any other user to files that are closed.
_PRIVILEGES = "-dac_override,-dac_read_search"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails where there is anything else."""
        assert self.stdout.count("\n") == 1, self.stdout
        parsed = json.loads(self.stdout)
        assert isinstance(parsed, dict)
        return parsed


class Program:
    """Runs commands in a working directory, with an environment that has nothing of the caller's settings."""

    def __init__(self, directory: Path, **environment: str) -> None:
        """Run in `directory`, with `environment` on top; the cache lies there too."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAB_BACKUP_", "LIBVIRT_"))}
        self.directory = directory
        self.environment = {**kept, "LAB_BACKUP_CACHE": str(directory / "cache"), "TERM": "xterm", **environment}

    def __call__(
        self, *arguments: str | Path, unprivileged: bool = False, stdin: str = "", **environment: str
    ) -> Ended:
        """Run a command to its end; `unprivileged` takes away root's right to ignore file modes."""
        done = subprocess.run(
            [*self._without_privileges(unprivileged), PROGRAM, *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, **environment: str) -> dict[str, Any]:
        """Run a command with `--json` that must succeed, and return its object."""
        ended = self(*arguments, "--json", unprivileged=False, stdin="", **environment)
        assert ended.code == 0, ended.stderr
        return ended.object

    def start(self, *arguments: str | Path, **streams: Any) -> "subprocess.Popen[bytes]":
        """Begin a command in a session of its own; the caller ends it. `streams` are those of Popen."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environment,
            start_new_session=True,
            **streams,
        )

    @staticmethod
    def _without_privileges(unprivileged: bool) -> list[str]:  # noqa: FBT001  handed on from a keyword
        if not unprivileged or os.geteuid() != 0:
            return []
        return ["setpriv", f"--bounding-set={_PRIVILEGES}", f"--inh-caps={_PRIVILEGES}", "--"]
