"""A Samba server of one's own on 127.0.0.1: signing and encryption demanded, and a small share that can really be full."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab_backup.storage.smb import SMBStorage
from lab_backup.units import MiB
from support.waiting import wait_until

USER = "backupuser"
PASSWORD = "Secret-Pw1"
SMALL = 16 * MiB  # bytes of the file system behind the share `small`
TIMEOUT = 60  # seconds for any of Samba's tools

_CONFIGURATION = """
[global]
  workgroup = TEST
  netbios name = TESTSRV
  server role = standalone server
  security = user
  map to guest = never
  smb ports = {port}
  bind interfaces only = yes
  interfaces = 127.0.0.1/8
  disable netbios = yes
  server min protocol = SMB3_00
  server signing = mandatory
  server smb encrypt = required
  passdb backend = tdbsam:{folder}/priv/passdb.tdb
  private dir = {folder}/priv
  lock directory = {folder}/lock
  state directory = {folder}/state
  cache directory = {folder}/cache
  pid directory = {folder}/pid
  ncalrpc dir = {folder}/ncalrpc
  log file = {folder}/log/smbd.log
  load printers = no
  printing = bsd
  printcap name = /dev/null
  disable spoolss = yes
  username map = {folder}/users.map
[backup]
  path = {folder}/backup
  read only = no
  force user = root
[readonly]
  path = {folder}/backup
  read only = yes
  force user = root
[small]
  path = {folder}/small
  read only = no
  force user = root
"""
# The mount lives in a namespace of the server's own, so that it goes when the server does.
_MOUNT_AND_RUN = 'mount -o loop "$1" "$2" && shift 2 && exec "$@"'


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed: make setup-test"
    return found


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Samba:
    """A server with the shares `backup`, `readonly` (the same folder) and `small`, for USER with PASSWORD."""

    def __init__(self, directory: Path) -> None:
        """Write the server's files below `directory`."""
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("backup", "small", "lock", "state", "cache", "priv", "pid", "log", "ncalrpc"):
            (directory / name).mkdir(mode=0o700 if name == "priv" else 0o755)
        self._configuration = directory / "smb.conf"
        self._configuration.write_text(_CONFIGURATION.format(port=self.port, folder=directory))
        (directory / "users.map").write_text(f"root = {USER}\n")
        image = directory / "small.img"
        with image.open("wb") as file:
            file.truncate(SMALL)
        subprocess.run([_program("mkfs.ext4"), "-q", "-m", "0", image], check=True, timeout=TIMEOUT)
        self._smbpasswd("-a", typed=PASSWORD)

    def start(self) -> Self:
        """Run the server until `stop`; it listens when this returns."""
        command = ["smbd", "--foreground", "--no-process-group", f"--configfile={self._configuration}"]
        mounted = ["sh", "-c", _MOUNT_AND_RUN, "sh", str(self.directory / "small.img"), str(self.directory / "small")]
        with (self.directory / "log/out").open("ab") as log:
            self._process = subprocess.Popen(
                [_program("unshare"), "--mount", *mounted, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # smbd forks for each connection: one signal must reach all
            )
        wait_until(self._listens, 30)
        return self

    def stop(self) -> None:
        """Kill the server with all its connections, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT)
            self._process = None

    def restart(self) -> None:
        """Kill the server and start it again."""
        self.stop()
        self.start()

    def drop_connections(self) -> None:
        """End the processes of all connections; the server goes on listening."""
        assert self._process is not None
        listed = subprocess.run(
            [_program("ps"), "--no-headers", "-o", "pid,comm", "--sid", str(self._process.pid)],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        ).stdout
        for line in listed.splitlines():
            pid, _, name = line.strip().partition(" ")
            # what serves connections is called smbd or smbd[127.0.0.1]; the daemons beside it have names of their own
            if int(pid) != self._process.pid and name.strip() in {"smbd", "smbd[127.0.0.1]", "smbd[127.0.0.1"}:
                os.kill(int(pid), signal.SIGKILL)

    def disable_user(self) -> None:
        """Let USER log in no more; sessions that are open live on."""
        self._smbpasswd("-d")

    def enable_user(self) -> None:
        """Take `disable_user` back."""
        self._smbpasswd("-e")

    def open(self, path: str = "", *, share: str = "backup", **options: Any) -> SMBStorage:
        """Open a storage on a share, as a user would."""
        chosen: dict[str, Any] = {"port": self.port, "user": USER, "password": PASSWORD, "timeout": 20.0, **options}
        return SMBStorage("127.0.0.1", share, path, **chosen)

    def folder(self, share: str = "backup") -> Path:
        """Return the folder that a share shows, as the server sees it."""
        return self.directory / ("backup" if share == "readonly" else share)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log/out").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _smbpasswd(self, action: str, *, typed: str = "") -> None:
        subprocess.run(
            [_program("smbpasswd"), "-c", str(self._configuration), "-s", action, "root"],
            input=f"{typed}\n{typed}\n" if typed else "",
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
