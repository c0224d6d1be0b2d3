"""Run our own program the way a user does: as a command, with its progress on the terminal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab_backup.demo.errors import DemoError

_COMMAND_SECONDS = 600
_CLEAN_UP_SECONDS = 60  # what an interrupted command may take to free the guest and remove what it made
_DONE = (0, 3)  # 3: done, with warnings


class CommandLine:
    """`lab-backup` with an environment of its own on top of ours."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Find the program beside this Python. Raises DemoError where it is not installed."""
        self._environment = {**os.environ, **environment}
        self._program = Path(sys.executable).with_name("lab-backup")
        if not self._program.exists():
            raise DemoError(f"there is no {self._program}", hint="run make setup")

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run the command with `--json` and return its object. Its other output goes to our standard error.

        An interrupted command is asked once to clean up, and gets the time for it. Raises DemoError where it fails.
        """
        process = subprocess.Popen(
            [self._program, *arguments, "--json"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # else a Ctrl-C would reach it twice: from the terminal, and from us
        )
        try:
            output, _ = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"lab-backup {arguments[0]} took longer than {_COMMAND_SECONDS} s") from error
        finally:
            _end(process)
        if process.returncode not in _DONE:
            raise DemoError(
                f"lab-backup {' '.join(arguments)} failed with exit code {process.returncode}",
                hint="its own message stands above",
            )
        answer: dict[str, Any] = json.loads(output)
        return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_CLEAN_UP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
