"""What is told about containers and images, and made of it again, on a real Podman service."""

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from lab_backup.demo.podman_service import PodmanService
from lab_backup.errors import BusyError, NotFoundError
from lab_backup.sources.podman import claim, image
from lab_backup.sources.podman.command import run_in_container
from lab_backup.sources.podman.compare import differences
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import CommandFailedError, PodmanUnreachableError
from lab_backup.sources.podman.spec import create_spec, secrets_in_command, without_secrets
from support.podman_box import Box, container


@pytest.fixture
def podman(podman_service: PodmanService) -> Iterator[Podman]:
    """Return a connection to the private service."""
    with Podman(podman_service.uri) as connection:
        yield connection


@pytest.fixture
def box(podman_service: PodmanService) -> Iterator[Box]:
    """Return a running container with a volume."""
    with container(podman_service) as made:
        yield made


def test_rebuilds_a_container(podman: Podman, podman_service: PodmanService) -> None:
    """A container made from the spec equals the first one in all that Podman tells about it."""
    podman_service.run("network", "create", "--subnet", "10.99.7.0/24", "spec-net")
    podman_service.run("secret", "create", "spec-secret", "-", data=b"hunter2")
    options = (
        "--network", "spec-net:ip=10.99.7.5,alias=www", "-e", "GREETING=hello you", "-l", "tier=web",
        "--secret", "spec-secret,type=env,target=PASSWORD", "--secret", "spec-secret", "-p", "127.0.0.1:18088:80",
        "--memory", "64m", "--cpu-shares", "512", "--pids-limit", "77", "--cap-add", "NET_ADMIN", "--cap-drop", "MKNOD",
        "--security-opt", "no-new-privileges", "--stop-timeout", "3", "--stop-signal", "SIGUSR1", "--restart", "on-failure:3",
        "--hostname", "webhost", "--dns", "192.0.2.1", "--add-host", "db:192.0.2.7", "--tmpfs", "/scratch:size=1m",
        "--ulimit", "nofile=100:200", "--ulimit", "nproc=1000:1000", "--user", "0:0", "--workdir", "/etc",
        "--shm-size", "1m", "--umask", "0027", "--init=false", "--group-add", "1234", "--device", "/dev/null:/dev/nothing",
        "--oom-score-adj", "100",
    )  # fmt: skip
    try:
        with container(podman_service, *options) as box:
            before = box.inspect(podman)
            unsaid = secrets_in_command(before["Config"]["CreateCommand"])
            spec = create_spec(before, image=before["ImageName"], unsaid=unsaid)
            podman_service.run("rm", "-f", "-t", "0", box.name)
            podman.post("containers/create", body=spec)
            podman.post(f"containers/{box.name}/start")
            assert differences(before, box.inspect(podman)) == []
            assert box.sh("echo $PASSWORD; cat /run/secrets/spec-secret") == "hunter2\nhunter2"
            assert "hunter2" in str(before)  # Podman shows it ...
            assert "hunter2" not in str(
                (spec, without_secrets(before, unsaid.secret_environment))
            )  # ... we do not keep it
    finally:
        podman_service.run("network", "rm", "-f", "spec-net")
        podman_service.run("secret", "rm", "spec-secret")


def test_image_comes_back_by_layers(podman: Podman, podman_service: PodmanService) -> None:
    """An image loaded from its stored layers has the id, the names and the layers that it had; a known layer is not read."""
    name = "localhost/layers:1"
    podman_service.import_image(name, changes=("ENV COLOUR=blue", "CMD sh"))
    before = image.look_at(podman, name)
    stored: dict[str, bytes] = {}

    def store(digest: str, stream: BinaryIO) -> None:
        stored[digest] = stream.read()

    config = image.read_image(podman, before, known=(), store=store)
    assert list(stored) == list(before.layers)
    assert "COLOUR=blue" in before.environment
    read_again: list[str] = []
    image.read_image(podman, before, known=stored, store=lambda digest, _: read_again.append(digest))
    assert read_again == []
    podman_service.run("rmi", "-f", name)
    layers = [
        image.StoredLayer(digest, len(data), lambda data=data: iter([data]))  # type: ignore[misc] # mypy knows no such lambda
        for digest, data in stored.items()
    ]
    image.load(podman, image.archive_of(config, layers, before.names))
    assert image.look_at(podman, name) == before
    podman_service.run("rmi", "-f", name)


def test_archive_is_a_tar() -> None:
    """What is sent to make an image is a tar that others read too."""
    layer = image.StoredLayer("0" * 64, 3, lambda: [b"ab", b"c"])
    data = b"".join(image.archive_of(b"{}", [layer], ["localhost/a:1"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        first = archive.extractfile(names[0])
        assert first is not None
        assert first.read() == b"abc"
        assert names[-1] == "manifest.json"


def test_command_in_container(podman: Podman, box: Box) -> None:
    """A command's output comes back whole and without frames, also when it is long."""
    said = run_in_container(podman, box.name, "echo out; echo err >&2; seq 20000", timeout=30)
    assert said.endswith("19999\n20000")
    assert len(said) <= 2000


def test_command_fails(podman: Podman, box: Box) -> None:
    """A failing command is an error that quotes its last words; one that hangs is an error after its time."""
    with pytest.raises(CommandFailedError, match="status 3: no disk"):
        run_in_container(podman, box.name, "echo no disk >&2; exit 3", timeout=30)
    with pytest.raises(CommandFailedError, match="did not end within"):
        run_in_container(podman, box.name, "exec sleep 100", timeout=0.5)


def test_claims_exclude_each_other(podman: Podman, box: Box) -> None:
    """A second backup of a container is refused while the first lives, and may go on when it is over."""
    identity = box.inspect(podman)["Id"]
    first = claim.take(podman, identity, backup="1" * 32)
    with pytest.raises(BusyError, match="being backed up already"):
        claim.take(podman, identity, backup="2" * 32)
    claim.release(podman, claim.Claim(first.volume, "2" * 32))
    assert claim.holder(podman, first.volume) is not None
    claim.release(podman, first)
    claim.release(podman, claim.take(podman, identity, backup="2" * 32))
    assert claim.holder(podman, first.volume) is None


def test_missing_container(podman: Podman) -> None:
    """A name that nobody has is "not found", with the name in the message."""
    with pytest.raises(NotFoundError, match="nobody"):
        podman.get("containers/nobody/json")


def test_no_service() -> None:
    """Where nothing listens the error says so, and what to start."""
    with pytest.raises(PodmanUnreachableError, match="does not answer"), Podman("unix:///nonexistent/podman.sock"):
        pass
