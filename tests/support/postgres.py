"""PostgreSQL in a container: an image of the machine's own Debian packages, with the paths and the habits of the official image."""

import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lab_backup.demo.podman_service import PodmanService, busybox_tar
from lab_backup.sources.podman.connection import Podman

IMAGE = "localhost/test-postgres:1"
START_SECONDS = 60
LINKED_SECONDS = 60
_VERSIONS = Path("/usr/lib/postgresql")
_UNUSED = {
    "bitcode",
    "pgxs",
    "llvmjit.so",
    "llvmjit_types.bc",
}  # compiling queries, and other programs; 150 MB of libraries
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/sh\n"
_GROUP = b"root:x:0:\npostgres:x:999:\n"

# Like the official image: the container's user is root, the server's is not, and whoever is in the container is trusted.
_ENTRYPOINT = """#!/bin/sh
set -e
mkdir -p "$PGDATA" /var/run/postgresql
chown -R postgres:postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    su postgres -c 'initdb --pgdata="$PGDATA" --auth=trust --encoding=UTF8 --locale=C --data-checksums --no-sync'
fi
exec su postgres -c 'exec postgres'
"""


@dataclass(frozen=True)
class Postgres:
    """A container with a server, its data in one volume and another one at /backup."""

    service: PodmanService
    name: str

    @property
    def volumes(self) -> tuple[str, str]:
        """The names of the volumes of data and dumps."""
        return f"{self.name}-data", f"{self.name}-dumps"

    def sh(self, *command: str) -> str:
        """Run a command in the container and return what it wrote."""
        return self.service.run("exec", self.name, *command).stdout.decode()

    def sql(self, text: str, database: str = "postgres") -> list[str]:
        """Run SQL and return the lines of its answer."""
        return self.sh("psql", "-U", "postgres", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", text, database).splitlines()

    def wait_ready(self) -> None:
        """Wait until the server takes connections over TCP too, which a first start's own helper does not."""
        deadline = time.monotonic() + START_SECONDS
        while self.service.run("exec", self.name, "pg_isready", "-q", "-h", "127.0.0.1", check=False).returncode:
            assert time.monotonic() < deadline, f"PostgreSQL does not start: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """Return what the server said since the container was made."""
        done = self.service.run("logs", self.name, check=False)
        return (done.stdout + done.stderr).decode(errors="replace")

    def remove(self) -> None:
        """Remove the container and its volumes, also those of a restore under the same name."""
        self.service.run("unpause", self.name, check=False)
        self.service.run("rm", "-f", "-t", "0", self.name, check=False)
        self.service.run("volume", "rm", "-f", *self.volumes, check=False)


@contextmanager
def postgres(service: PodmanService, name: str | None = None) -> Iterator[Postgres]:
    """Run a server with new volumes, `IMAGE` being there; at the end all is removed."""
    server = Postgres(service, name or f"pg-{uuid.uuid4().hex[:8]}")
    data, dumps = server.volumes
    try:
        mounts = ("-v", f"{data}:/var/lib/postgresql/data", "-v", f"{dumps}:/backup")
        service.run("run", "-d", "--name", server.name, *mounts, IMAGE)
        server.wait_ready()
        yield server
    finally:
        server.remove()


@contextmanager
def postgres_image(service: PodmanService) -> Iterator[str]:
    """Make `IMAGE` from the newest PostgreSQL of this machine; at the end it is removed."""
    installed = sorted((path for path in _VERSIONS.glob("*/bin/postgres")), key=lambda path: int(path.parts[-3]))
    assert installed, "PostgreSQL is not installed: apt-get install postgresql"
    home = installed[-1].parents[1]
    repository, _, tag = IMAGE.rpartition(":")
    changes = [
        f"ENV PATH={home}/bin:/bin",
        "ENV PGDATA=/var/lib/postgresql/data",
        'ENTRYPOINT ["/bin/entrypoint"]',
        "VOLUME /var/lib/postgresql/data",
        "STOPSIGNAL SIGINT",
    ]
    with Podman(service.uri) as podman:
        podman.send(
            "post",
            "images/import",
            "import an image",
            [_root_tar(home)],
            reference=f"{repository}:{tag}",
            changes=changes,
        )
    try:
        yield IMAGE
    finally:
        service.run("rmi", "-f", IMAGE, check=False)


def _root_tar(home: Path) -> bytes:
    """Return busybox, PostgreSQL and the libraries that it is linked with."""
    share = Path("/usr/share/postgresql", home.name)
    programs = [path for path in (home / "bin").iterdir() if path.is_file()]
    modules = [path for path in (home / "lib").glob("*.so") if path.name not in _UNUSED]
    content = BytesIO()
    with tarfile.open(fileobj=BytesIO(busybox_tar())) as busybox, tarfile.open(fileobj=content, mode="w") as archive:
        for entry in busybox:
            if entry.name != "etc/passwd":  # podman refuses an archive that names a path twice
                archive.addfile(entry, busybox.extractfile(entry) if entry.isreg() else None)
        for folder in (home, share):
            archive.add(folder, str(folder).lstrip("/"), filter=_wanted)
        for library in _linked([*programs, *modules]):
            archive.add(library.resolve(), str(library).lstrip("/"))
        for name, data, mode in (
            ("etc/passwd", _PASSWD, 0o644),
            ("etc/group", _GROUP, 0o644),
            ("bin/entrypoint", _ENTRYPOINT.encode(), 0o755),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, BytesIO(data))
    return content.getvalue()


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name in _UNUSED else entry


def _linked(files: Sequence[Path]) -> list[Path]:
    """Return the libraries that `ldd` names, the dynamic loader among them."""
    ldd = shutil.which("ldd")
    assert ldd is not None
    listed = subprocess.run(
        [ldd, *map(str, files)], capture_output=True, text=True, check=False, timeout=LINKED_SECONDS
    ).stdout
    words = (word for line in listed.splitlines() for word in line.split() if line.startswith("\t"))
    return [Path(word) for word in sorted({word for word in words if word.startswith("/")})]
