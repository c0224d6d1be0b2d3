"""A Podman service of its own: private mounts, network, processes and storage. When it ends, nothing of it is left."""

import os
import resource
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from lab_backup.demo.errors import DemoError
from lab_backup.demo.tool import SEARCH_PATH
from lab_backup.sources.podman.connection import Podman

START_TIMEOUT = 60.0
"""Seconds for the service to listen; a first start makes its storage."""

COMMAND_TIMEOUT = 120.0
"""Seconds for one podman command."""

GROUPS_TIMEOUT = 2.0
"""Seconds for control groups to become empty; those of another service's containers never do, and stay."""

IMAGE = "localhost/lab-backup-demo:1"

# The hybrid hierarchy of control groups confuses crun; state, locks and caches go to private memory, never to the host's.
_SETUP = """
set -e
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /run/lock /var/lib/containers
mount -t tmpfs tmpfs /var/lib/containers
ip link set lo up
exec "$@"
"""


class PodmanService:
    """A running service for root; a context manager. `uri` is where it listens."""

    def __init__(self) -> None:
        """Make its folder; entering it starts the service."""
        # overlay needs a file system that is none itself, which /tmp is on every usual machine
        self.directory = Path(tempfile.mkdtemp(prefix="lb-pod-"))
        self._socket = self.directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._inside = ""
        self._configure()

    @property
    def uri(self) -> str:
        """The address of the service."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The process id of the service itself, in this process's numbers."""
        return int(self._inside)

    def _configure(self) -> None:
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
        limit = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        processes = 32768 if limit == resource.RLIM_INFINITY else min(limit, 32768)
        folder = self.directory
        for name in ("storage", "networks", "tmp"):
            (folder / name).mkdir()
        # raising the limits needs a capability that containers of CI systems lack
        scratch = folder / "tmp"
        (folder / "containers.conf").write_text(
            f"""[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
tmp_dir = "/run/libpod"
image_copy_tmp_dir = "{scratch}"
infra_image = "{IMAGE}"
infra_command = "/bin/pause"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
""",
            encoding="utf-8",
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "/run/containers/storage"\n',
            encoding="utf-8",
        )
        (folder / "registries.conf").write_text("unqualified-search-registries = []\n", encoding="utf-8")

    @property
    def _environment(self) -> dict[str, str]:
        foreign = {"CONTAINER_HOST", "DOCKER_HOST", "XDG_RUNTIME_DIR"}
        return {name: value for name, value in os.environ.items() if name not in foreign} | {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.directory / "registries.conf"),
        }

    def __enter__(self) -> Self:
        try:
            self.start()
            self.import_image()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Start the service, and return when it listens. Raises DemoError."""
        self._socket.unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _program("unshare", "util-linux"), "--mount", "--net", "--pid", "--fork", "--mount-proc",
                    "--kill-child=SIGKILL", "--propagation", "private", "sh", "-c", _SETUP, "setup",
                    _program("podman", "podman"), "system", "service", "--time=0", self.uri,
                ],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "log").read_text(errors="replace").strip().splitlines()
                raise DemoError(f"the Podman service does not start: {said[-1] if said else 'it says nothing'}")
            time.sleep(0.02)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._inside = children.read_text(encoding="ascii").split()[0]

    def run(self, *arguments: str, check: bool = True, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run `podman ARGUMENTS` where the service runs; return what it wrote. Raises DemoError where `check` and it fails."""
        return self.run_program("podman", *arguments, check=check, data=data)

    def run_program(
        self, *arguments: str, check: bool = True, data: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside the namespaces of the service."""
        done = subprocess.run(
            [_program("nsenter", "util-linux"), "-t", self._inside, "-m", "-n", "-p", *arguments],
            env=self._environment, capture_output=True, input=data, timeout=COMMAND_TIMEOUT, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise DemoError(f"{' '.join(arguments[:3])} failed: {done.stderr.decode(errors='replace').strip()}")
        return done

    def import_image(self, name: str = IMAGE, changes: Sequence[str] = ()) -> None:
        """Make the image `name` of busybox; no registry is asked. `changes` are lines of a container file, such as `ENV A=b`."""
        repository, _, tag = name.rpartition(":")
        with Podman(self.uri) as podman:
            podman.send(
                "post",
                "images/import",
                "import an image",
                [busybox_tar()],
                reference=f"{repository}:{tag}",
                changes=list(changes),
            )

    def stop(self) -> None:
        """End all containers, and the service with its namespaces; the storage stays."""
        if self._process is None:
            return
        if self._process.poll() is None and self._inside:
            # otherwise empty control groups stay behind, which are the only thing without a namespace
            self.run("pod", "rm", "-fa", "-t", "0", check=False)
            self.run("rm", "-fa", "-t", "0", check=False)
        self._process.kill()
        self._process.wait()
        self._process = None
        _remove_groups(control_groups())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)


def _program(name: str, package: str) -> str:
    """Return the path of a program. Raises DemoError where it is not installed."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise DemoError(f"the program {name} is not installed", hint=f"install {package}")
    return path


def _remove_groups(folders: set[Path]) -> None:
    """Remove control groups in which nothing runs any more; their last processes take a moment to be gone.

    Whoever else needs an empty one makes it anew.
    """
    deadline = time.monotonic() + GROUPS_TIMEOUT
    while folders and time.monotonic() < deadline:
        for folder in tuple(folders):
            with suppress(OSError):
                if (folder / "conmon").exists():
                    (folder / "conmon").rmdir()
                folder.rmdir()
                folders.discard(folder)
        time.sleep(0.02)


def control_groups() -> set[Path]:
    """Return the control groups in which Podman services keep those of their containers."""
    return {path for pattern in ("libpod_parent", "*/libpod_parent") for path in Path("/sys/fs/cgroup").glob(pattern)}


def busybox_tar() -> bytes:
    """Return a root file system as tar: busybox, and links to it for each of its applets."""
    binary = Path(_program("busybox", "busybox-static"))
    listed = subprocess.run([binary, "--list"], capture_output=True, check=True, timeout=COMMAND_TIMEOUT)
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("var", 0o755), ("data", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        entry = archive.gettarinfo(str(binary), "bin/busybox")
        entry.mode, entry.mtime, entry.uid, entry.gid = 0o755, 0, 0, 0
        with binary.open("rb") as source:
            archive.addfile(entry, source)
        for applet in sorted(set(listed.stdout.decode().split()) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
        users = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(users)
        archive.addfile(entry, BytesIO(users))
    return content.getvalue()
