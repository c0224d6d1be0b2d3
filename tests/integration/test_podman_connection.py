"""Ways to a real Podman service, and what is said when they break."""

from pathlib import Path

import pytest

from lab_backup.demo.podman_service import IMAGE, PodmanService, control_groups
from lab_backup.errors import AccessDeniedError, LabBackupError
from lab_backup.sources.podman import image
from lab_backup.sources.podman.connection import Podman
from lab_backup.sources.podman.errors import PodmanError
from support.certificates import Authority
from support.relay import Relay
from support.waiting import has_ended


def _socket(service: PodmanService) -> Path:
    return Path(service.uri.removeprefix("unix://"))


def test_behind_tls(podman_service: PodmanService, tmp_path: Path) -> None:
    """Behind TLS, with certificates on both sides, the service answers, also with a whole image."""
    authority = Authority(tmp_path / "ca")
    server, client = authority.server(tmp_path / "server"), authority.client(tmp_path / "client")
    with (
        Relay(_socket(podman_service), tls=server) as relay,
        Podman(f"tcp://localhost:{relay.port}?tls={client}") as podman,
    ):
        assert podman.version
        assert not podman.is_local
        facts = image.look_at(podman, IMAGE)
        sizes = []
        image.read_image(podman, facts, known=(), store=lambda _, stream: sizes.append(len(stream.read())))
        assert sizes[0] > 100_000


def test_wrong_certificates(podman_service: PodmanService, tmp_path: Path) -> None:
    """A server of another authority is not talked to, and a client without certificate is not served."""
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    server, client = authority.server(tmp_path / "server"), stranger.client(tmp_path / "client")
    with Relay(_socket(podman_service), tls=server) as relay:
        with pytest.raises(AccessDeniedError, match="TLS"):
            Podman(f"tcp://localhost:{relay.port}?tls={client}").__enter__()
        with pytest.raises(LabBackupError):
            Podman(f"tcp://localhost:{relay.port}?tls={authority.directory}").__enter__()


def test_connection_lost_while_reading(podman_service: PodmanService) -> None:
    """A connection that is cut in the middle of an image is an error that says so, never a shorter image."""
    with Podman(podman_service.uri) as podman:
        facts = image.look_at(podman, IMAGE)
    stored: list[int] = []
    with (
        Relay(_socket(podman_service), cut_after=500_000) as relay,
        Podman(f"tcp://127.0.0.1:{relay.port}?plain=1") as podman,
        pytest.raises(PodmanError),
    ):
        image.read_image(podman, facts, known=(), store=lambda _, stream: stored.append(len(stream.read())))


def test_private_service_leaves_nothing() -> None:
    """When a private service ends, its containers, folders and control groups are gone, also those of a running container."""
    with PodmanService() as service:
        container = service.run("run", "-d", IMAGE, "sleep", "1000").stdout.decode().strip()
        process, directory = service.pid, service.directory
        assert [group for group in control_groups() if (group / f"libpod-{container}").exists()]
    assert has_ended(process)
    assert not directory.exists()
    assert not [group for group in control_groups() if (group / f"libpod-{container}").exists()]
