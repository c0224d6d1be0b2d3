"""A real NFS 4 server of one's own on 127.0.0.1, nfs-ganesha, and mounts of it for a kernel that has no client."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from lab_backup.storage.nfs.address import Address
from lab_backup.storage.nfs.mounter import Mounter, is_mount
from lab_backup.storage.nfs.mounts import mounts
from lab_backup.storage.nfs.storage import NFSStorage
from support.samba import free_port
from support.waiting import wait_until

FUSE = frozenset({"fuse"})
SMALL = 16 << 20  # bytes of the file system behind the export `small`
TIMEOUT = 60

_CONFIGURATION = """
NFS_CORE_PARAM {{
  NFS_Port = {port}; MNT_Port = {mount_port}; NLM_Port = {lock_port}; Rquota_Port = {quota_port};
  Bind_addr = 127.0.0.1; Protocols = 4; NFS_Protocols = 4;
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true;
  Plugins_Dir = "{plugins}";
}}
NFSv4 {{
  Graceless = true; Minor_Versions = 0, 1, 2; RecoveryBackend = fs; RecoveryRoot = "{folder}/recovery";
  Only_Numeric_Owners = true; Allow_Numeric_Owners = true;
}}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT_DEFAULTS {{ SecType = sys; Transports = TCP; Protocols = 4; }}
EXPORT {{ Export_Id = 1; Path = "{folder}/export"; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash; FSAL {{ Name = VFS; }} }}
EXPORT {{ Export_Id = 2; Path = "{folder}/export"; Pseudo = /readonly; Access_Type = RO; Squash = No_Root_Squash; FSAL {{ Name = VFS; }} }}
EXPORT {{ Export_Id = 3; Path = "{folder}/small"; Pseudo = /small; Access_Type = RW; Squash = No_Root_Squash; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""
# The small file system is mounted in a namespace of the server's own, so that it goes when the server does.
_MOUNT_AND_RUN = 'mount -o loop "$1" "$2" && mkdir -p "$2/in" && shift 2 && exec "$@"'


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    assert found is not None, f"{name} is not installed: make setup-test"
    return found


class Ganesha:
    """A server with the exports `export`, `readonly` (the same folder) and `small`; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Write the server's files below `directory`."""
        self.directory = directory
        self.port = free_port()
        self.mounter = Mounter(
            folder=directory / "mounts",
            program=(sys.executable, str(Path(__file__).with_name("nfs_mount.py"))),
            kinds=FUSE,
        )
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("export", "small", "recovery"):
            (directory / name).mkdir()
        plugins = next(Path("/usr/lib").glob("*/ganesha"))
        self._configuration = directory / "ganesha.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(
                port=self.port,
                mount_port=free_port(),
                lock_port=free_port(),
                quota_port=free_port(),
                folder=directory,
                plugins=plugins,
            )
        )
        with (directory / "small.img").open("wb") as file:
            file.truncate(SMALL)
        subprocess.run([_program("mkfs.ext4"), "-q", "-m", "0", directory / "small.img"], check=True, timeout=TIMEOUT)

    def start(self) -> Self:
        """Run the server; it listens when this returns."""
        shutil.rmtree(self.directory / "recovery")
        (self.directory / "recovery").mkdir()
        command = [
            "-F",
            "-f",
            self._configuration,
            "-L",
            self.directory / "log",
            "-p",
            self.directory / "pid",
            "-N",
            "NIV_EVENT",
        ]
        mounted = ["sh", "-c", _MOUNT_AND_RUN, "sh", self.directory / "small.img", self.directory / "small"]
        with (self.directory / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [_program("unshare"), "--mount", *map(str, mounted), _program("ganesha.nfsd"), *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        wait_until(self._listens, 30)
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "out").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT)
            self._process = None

    def address(self, path: str, *, export: str = "export") -> Address:
        """Return the address of a folder of an export."""
        return Address("127.0.0.1", f"/{export}/{path}", (f"port={self.port}",))

    def open(self, path: str, *, export: str = "export", create: bool = True) -> NFSStorage:
        """Open a storage, as a user would; the folder above `path` is made on the server."""
        if create and export == "export":
            (self.directory / "export" / path).parent.mkdir(parents=True, exist_ok=True)
        return NFSStorage(self.address(path, export=export), create=create, mounter=self.mounter)

    def mounted(self) -> list[Path]:
        """Return where it is mounted now."""
        folder = self.directory / "mounts"
        return [
            Path(mount.path)
            for mount in mounts()
            if Path(mount.path).parent == folder and is_mount(Path(mount.path), FUSE)
        ]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self.mounted():
            subprocess.run([_program("umount"), "-l", place], check=False, timeout=TIMEOUT)
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
