"""Containers made again on a real Podman service: with nothing left of the old one, beside it, and in its place."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from lab_backup.demo.podman_service import PodmanService
from lab_backup.errors import TargetExistsError, UsageError
from lab_backup.sources.podman import image
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.container import look_at
from lab_backup.sources.podman.errors import PodmanError
from lab_backup.sources.podman.restore import Options, Restoration, RestorePlan, plan
from lab_backup.sources.podman.saved import SavedContainer
from support.podman_box import Box, container


@pytest.fixture
def podman(podman_service: PodmanService) -> Iterator[Podman]:
    """Return a connection to the private service."""
    with Podman(podman_service.uri) as connection:
        yield connection


@pytest.fixture
def network(podman_service: PodmanService) -> Iterator[str]:
    """Return a network with addresses of its own."""
    podman_service.run("network", "create", "--subnet", "10.99.8.0/24", "--label", "of=tests", "restore-net")
    yield "restore-net"
    podman_service.run("network", "rm", "-f", "restore-net")


@pytest.fixture
def box(podman_service: PodmanService, network: str) -> Iterator[Box]:
    """Return a running container from an image of its own, with files in its volume and in its writable layer."""
    podman_service.import_image("localhost/restore:1", changes=("ENV COLOUR=blue",))
    options = ("--network", f"{network}:ip=10.99.8.5", "-p", "127.0.0.1:18089:80", "-e", "A=b")
    with container(podman_service, *options, image="localhost/restore:1") as made:
        made.sh("echo data > /data/file; ln /data/file /data/link; chown 1234:70000 /data/file; chmod 4711 /data/file")
        made.sh("echo changed > /etc/added; rm /etc/passwd")
        yield made
    podman_service.run("rmi", "-f", "localhost/restore:1")


@dataclass
class Copy:
    """What a backup holds, in plain folders."""

    saved: SavedContainer
    config: bytes
    layers: dict[str, bytes]
    folder: Path

    def archive(self) -> Iterator[bytes]:
        """Return the image as it is loaded."""
        layers = [image.StoredLayer(digest, len(self.layers[digest]), lambda d=digest: [self.layers[d]]) for digest in self.saved.image.layers]  # type: ignore[misc] # fmt: skip # mypy knows no such lambda
        return image.archive_of(self.config, layers, self.saved.image.names)


def _copy(source: str | Path, target: str | Path) -> None:
    subprocess.run(["/usr/bin/cp", "-a", f"{source}/.", str(target)], check=True, timeout=30)


def _take(podman: Podman, box: Box, folder: Path) -> Copy:
    facts = look_at(podman, box.name)
    layers: dict[str, bytes] = {}

    def store(digest: str, stream: BinaryIO) -> None:
        layers[digest] = stream.read()

    config = image.read_image(podman, facts.image, known=(), store=store)
    assert facts.writable_layer is not None
    for name, source in (("volume", facts.volumes[0].path), ("layer", facts.writable_layer)):
        (folder / name).mkdir(parents=True)
        _copy(source, folder / name)
    # what travels is JSON
    saved = msgspec.json.decode(msgspec.json.encode(facts.saved), type=SavedContainer)
    return Copy(saved, config, layers, folder)


def _put(podman: Podman, copy: Copy, options: Options) -> list[str]:
    with Restoration(podman, plan(podman, copy.saved, options)) as restoration:
        restoration.make(copy.archive())
        layer = restoration.writable_layer()
        assert layer is not None
        _copy(copy.folder / "layer", layer)
        for path in restoration.mount().values():
            assert list(Path(path).iterdir()) == []
            _copy(copy.folder / "volume", path)
        restoration.start()
        return restoration.finish()


def _holds_all(box: Box) -> bool:
    facts = box.sh(
        "stat -c '%u %g %a %h' /data/file; cat /data/link /etc/added; ls /etc/passwd || true; echo $COLOUR $A"
    )
    return facts == "1234 70000 4711 2\ndata\nchanged\nblue b\n"


def test_comes_back_from_nothing(podman: Podman, podman_service: PodmanService, box: Box, tmp_path: Path) -> None:
    """With container, volume, network and image gone, all of them come back as they were."""
    copy = _take(podman, box, tmp_path)
    podman_service.run("rm", "-f", "-t", "0", box.name)
    podman_service.run("volume", "rm", box.volume)
    podman_service.run("network", "rm", "restore-net")
    podman_service.run("rmi", "localhost/restore:1")
    assert _put(podman, copy, Options()) == []
    assert _holds_all(box)
    assert image.look_at(podman, "localhost/restore:1").id == copy.saved.image.id
    assert podman.get("networks/restore-net/json")["labels"] == {"of": "tests"}


def test_beside_the_old_one(podman: Podman, podman_service: PodmanService, box: Box, tmp_path: Path) -> None:
    """Under a new name a second container runs beside the first, with volumes, address and ports of its own."""
    copy = _take(podman, box, tmp_path)
    again = Box(podman_service, f"{box.name}-again")
    try:
        made = plan(podman, copy.saved, Options(name=again.name, volume_suffix="-again"))
        assert made.lost == ["its published ports", "its addresses in the network restore-net"]
        _put(podman, copy, Options(name=again.name, volume_suffix="-again"))
        assert _holds_all(again)
        assert box.state(podman) == "running"
    finally:
        podman_service.run("rm", "-f", "-t", "0", again.name)
        podman_service.run("volume", "rm", "-f", f"{box.volume}-again")


def test_conflicts_come_first(podman: Podman, box: Box, tmp_path: Path) -> None:
    """Where container and volume are there, the restore says so and changes nothing."""
    copy = _take(podman, box, tmp_path)
    made = plan(podman, copy.saved, Options())
    assert made.conflicts == [f"container {box.name} (running)", f"volume {box.volume}"]
    with pytest.raises(TargetExistsError, match="is in conflict"):
        Restoration(podman, made)
    port = plan(podman, copy.saved, Options(name="other", volume_suffix="-x"))
    assert port.conflicts == []  # another one gets no ports
    forged = msgspec.structs.replace(copy.saved, name="other", spec={**copy.saved.spec, "name": "other"})
    assert f"port 18089/tcp is in use by {box.name}" in plan(podman, forged, Options(volume_suffix="-x")).conflicts


def _fail_in_the_middle(podman: Podman, made: RestorePlan) -> None:
    with Restoration(podman, made) as restoration:
        restoration.make(None)
        restoration.mount()
        podman.get("containers/no-such-thing/json")


def test_failure_leaves_nothing(podman: Podman, box: Box, tmp_path: Path) -> None:
    """A restore that fails in the middle removes volume and container, and the one that it would replace runs as before."""
    copy = _take(podman, box, tmp_path)
    before = box.inspect(podman)["Id"]
    made = plan(podman, copy.saved, Options(overwrite=True, volume_suffix="-new"))
    with pytest.raises(PodmanError, match="no-such-thing"):
        _fail_in_the_middle(podman, made)
    assert box.inspect(podman)["Id"] == before
    assert box.state(podman) == "running"
    assert not podman.exists(f"volumes/{box.volume}-new")


def test_takes_the_place(podman: Podman, box: Box, tmp_path: Path) -> None:
    """With overwriting the restored container has the name, and the one that had it is gone."""
    copy = _take(podman, box, tmp_path)
    before = box.inspect(podman)["Id"]
    made = plan(podman, copy.saved, Options(overwrite=True, volume_suffix="-new"))
    assert made.replaces == [f"container {box.name} (running)"]
    with Restoration(podman, made) as restoration:
        restoration.make(None)
        restoration.mount()
        restoration.start()
        assert [name for name in restoration.finish() if not name.startswith("Mounts")] == ["HostConfig.Binds"]
    assert box.inspect(podman)["Id"] != before
    assert not podman.exists(f"containers/{before}")
    box.service.run("rm", "-f", "-t", "0", box.name)
    box.service.run("volume", "rm", f"{box.volume}-new")


def test_privileges_are_not_granted_silently(podman: Podman, box: Box, tmp_path: Path) -> None:
    """A spec that wants the host's files or all privileges is refused unless the user trusts the repository."""
    copy = _take(podman, box, tmp_path)
    mount = {"destination": "/host", "type": "bind", "source": "/", "options": ["rw"]}
    spec = {**copy.saved.spec, "privileged": True, "mounts": [mount]}
    forged = msgspec.structs.replace(copy.saved, spec=spec)
    made = plan(podman, forged, Options(name="forged", volume_suffix="-forged"))
    with pytest.raises(UsageError, match=r"all privileges on the host.*files of the host: / at /host"):
        Restoration(podman, made)
    assert plan(podman, forged, Options(name="forged", volume_suffix="-forged", trusted=True)).powers == []
