"""The same backups on every kind of storage, each on a real server on this machine, with restic beside us on S3."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the servers are those of the tests

from compare import WrongRestoreError, warm
from images import Images
from measure import Cost, middle, run
from peers import LAB_BACKUP, LabBackup, Restic, Tool
from support.nfs import Ganesha
from support.samba import PASSWORD, USER, Samba
from support.seaweed import ADMIN, Seaweed

STEPS = ("full", "unchanged", "changed", "restore", "verify", "replicate")
DELAY = 20  # milliseconds that are added to each question and its answer
COMPARE_SECONDS = 600
S3_KEYS = {"AWS_ACCESS_KEY_ID": ADMIN.access_key, "AWS_SECRET_ACCESS_KEY": ADMIN.secret_key}


@dataclass(frozen=True)
class Place:
    """Where a repository is to be, and what the environment must say to reach it."""

    url: str
    environment: Mapping[str, str] = field(default_factory=dict)


class LabAt(LabBackup):
    """lab-backup with its repository in some place."""

    def __init__(self, folder: Path, place: Place, *, like: "LabAt | None" = None) -> None:
        """Make the repository; with `like`, one whose chunk ids match."""
        self.place = place
        self._like = like
        super().__init__(folder)

    @property
    def environment(self) -> dict[str, str]:
        """What the command line is told, and the keys of the place."""
        return {**super().environment, "LAB_BACKUP_REPO": self.place.url, **self.place.environment}

    def prepare(self) -> None:
        """Make the repository."""
        options = []
        if self._like is not None:
            secret = self.folder / "from-passphrase"
            secret.write_text(self._like.secret)
            options = ["--like", self._like.place.url, "--from-passphrase-file", str(secret)]
        self.run_unmeasured([LAB_BACKUP, "repo", "init", self.place.url, *options])

    def replicate(self, source: "LabAt") -> Cost:
        """Copy all backups of `source`."""
        secret = self.folder / "from-passphrase"
        return self.run(
            LAB_BACKUP, "replicate", "--from", source.place.url, "--from-passphrase-file", secret,
            "--to", self.place.url, "--all", "--json",
        )  # fmt: skip


class ResticAt(Restic):
    """restic with its repository in a bucket."""

    def __init__(self, folder: Path, place: Place) -> None:
        """Make the repository."""
        self.place = place
        super().__init__(folder)

    @property
    def environment(self) -> dict[str, str]:
        """What restic is told, and the keys."""
        return {**super().environment, "RESTIC_REPOSITORY": self.place.url, **self.place.environment}


@dataclass
class Servers:
    """The servers, and fresh places on them."""

    folder: Path
    s3: Seaweed
    samba: Samba
    nfs: Path
    count: int = 0

    def place(self, kind: str, *, port: int | None = None) -> Place:
        """Return an empty place of that kind; for S3 perhaps through a relay on `port`."""
        self.count += 1
        name = f"{kind}-{self.count}"
        if kind == "local":
            return Place(str(self.folder / name))
        if kind == "nfs":
            return Place(str(self.nfs / name))
        if kind == "smb":
            return Place(
                f"smb://{USER}@127.0.0.1:{self.samba.port}/backup/{name}", {"LAB_BACKUP_SMB_PASSWORD": PASSWORD}
            )
        bucket, prefix = self.s3.place()
        endpoint = self.s3.endpoint if port is None else f"http://127.0.0.1:{port}"
        return Place(f"s3://{bucket}/{prefix}?endpoint={endpoint}", S3_KEYS)

    def for_restic(self) -> Place:
        """Return an empty place on the S3 server, as restic writes it."""
        bucket, prefix = self.s3.place()
        return Place(f"s3:{self.s3.endpoint}/{bucket}/{prefix}", S3_KEYS)


def measure_storages(images: Images, folder: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the medians of all storages and yardsticks as JSON."""
    done: dict[str, list[dict[str, Cost]]] = {}
    server_alone: list[dict[str, float]] = []
    with _servers(folder) as servers:
        source = LabAt(folder / "source", servers.place("local"))
        for image in (images.base, images.changed):
            source.backup(image)
        kinds: dict[str, Callable[[Path], Tool]] = {
            kind: lambda path, kind=kind: LabAt(path, servers.place(kind), like=source)  # type: ignore[misc]  # bound now
            for kind in ("local", "smb", "nfs", "s3")
        }
        kinds["s3, restic"] = lambda path: ResticAt(path, servers.for_restic())
        for turn in range(runs):
            say(f"storages, run {turn + 1}: the S3 server alone")
            server_alone.append(_server_alone(servers, Path(source.place.url) / "packs"))
            for name, make in kinds.items():
                say(f"storages, run {turn + 1}: {name}")
                done.setdefault(name, []).append(_run_tool(make(folder / f"tool-{turn}"), images, source, folder))
            for delay in (0, DELAY):
                say(f"storages, run {turn + 1}: s3 through a relay, {delay} ms")
                with _relay(servers.s3.endpoint, delay) as port:
                    tool = LabAt(folder / f"tool-{turn}", servers.place("s3", port=port), like=source)
                    done.setdefault(f"s3, +{delay} ms", []).append(_run_tool(tool, images, source, folder))
        source.remove()
    figures: dict[str, Any] = {"tools": {}, "delay": DELAY, "runs": runs}
    for name, turns in done.items():
        figures["tools"][name] = {
            step: {"seconds": cost.seconds, "peak_anonymous": cost.peak_anonymous, "cpu_seconds": cost.cpu_seconds}
            for step in STEPS
            if step in turns[0]
            for cost in [middle(turn[step] for turn in turns)]
        }
    alone = sorted(server_alone, key=lambda found: found["upload"])
    figures["alone"] = {
        "upload": alone[len(alone) // 2]["upload"],
        "download": sorted(found["download"] for found in server_alone)[len(alone) // 2],
        "bytes": alone[0]["bytes"],
    }
    return figures


def _run_tool(tool: Tool, images: Images, source: LabAt, folder: Path) -> dict[str, Cost]:
    done = {}
    steps: list[tuple[str, Path]] = [("full", images.base), ("unchanged", images.base), ("changed", images.changed)]
    for step, image in steps:
        warm(image)
        image.touch()
        os.sync()
        done[step] = tool.backup(image)
    target = folder / "restored.raw"
    os.sync()
    cost = tool.restore(target, "raw")
    assert cost is not None
    done["restore"] = cost
    command = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", str(images.changed), str(target)]
    if subprocess.run(command, check=False, timeout=COMPARE_SECONDS).returncode != 0:
        raise WrongRestoreError(f"{tool.name} restored something else")
    target.unlink()
    os.sync()
    verified = tool.verify()
    assert verified is not None
    done["verify"] = verified
    if isinstance(tool, LabAt):
        # into an empty repository beside the one that was measured
        there = LabAt(tool.folder / "copy", _beside(tool.place), like=source)
        os.sync()
        done["replicate"] = there.replicate(source)
    tool.remove()
    return done


def _beside(place: Place) -> Place:
    url, mark, query = place.url.partition("?")
    return Place(f"{url}-copy{mark}{query}", place.environment)


def _server_alone(servers: Servers, packs: Path) -> dict[str, float]:
    bucket, prefix = servers.s3.place()
    os.sync()
    script = Path(__file__).with_name("objects.py")
    cost = run([sys.executable, script, packs, servers.s3.endpoint, bucket, prefix], environment=S3_KEYS)
    found: dict[str, float] = json.loads(cost.output)
    return found


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[Servers]:
    for name in ("samba", "nfs"):
        (folder / name).mkdir()
    with Seaweed(folder / "s3") as s3, Samba(folder / "samba") as samba, Ganesha(folder / "nfs") as nfs:
        (nfs.directory / "export/places").mkdir()
        mounted = nfs.mounter.mount(nfs.address("places"))
        try:
            yield Servers(folder, s3, samba, mounted.path)
        finally:
            mounted.leave()


@contextlib.contextmanager
def _relay(endpoint: str, delay: int) -> Iterator[int]:
    command: Sequence[str | Path] = [
        sys.executable,
        Path(__file__).with_name("delay.py"),
        endpoint.rsplit(":", 1)[1],
        str(delay),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
