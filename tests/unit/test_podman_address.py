"""Addresses of Podman services: what is understood, and what is refused before anything is tried."""

from pathlib import Path

import pytest

from lab_backup.errors import UsageError
from lab_backup.sources.podman.address import SshService, TcpService, UnixService, default_service, parse


def test_forms() -> None:
    """Each form names what it says; nothing but the host shows in its text."""
    assert parse("unix:///run/podman/podman.sock") == UnixService(Path("/run/podman/podman.sock"))
    ssh = parse("ssh://root@host:2222/run/user/5/podman.sock")
    assert isinstance(ssh, SshService)
    assert (ssh.login.host, ssh.login.user, ssh.login.port, ssh.socket) == (
        "host",
        "root",
        2222,
        "/run/user/5/podman.sock",
    )
    assert ssh.login.check_host_key
    assert str(parse("ssh://host")) == "ssh://host/run/podman/podman.sock"
    assert parse("tcp://host:8443?tls=/etc/tls") == TcpService("host", 8443, tls=Path("/etc/tls"))
    assert str(parse("tcp://[::1]:8443?plain=1")) == "tcp://[::1]:8443"


@pytest.mark.parametrize(
    "uri",
    [
        "", "/run/podman.sock", "unix://relative", "unix:run", "http://host:80", "ssh://", "ssh://-oProxyCommand=x/run/s",
        "ssh://user:hunter2@host/run/s", "tcp://host", "tcp://host:99999", "tcp://host:1/path", "tcp://192.0.2.1:8080?plain=1",
        "unix:///run/s?no_verify=1", "ssh://host/run/s?nonsense=1",
    ],
)  # fmt: skip
def test_refused(uri: str) -> None:
    """What is no address, or one that gives the host away, is a mistake of the user's, without a password in its text."""
    with pytest.raises(UsageError) as caught:
        parse(uri)
    assert "hunter2" not in str(caught.value)


def test_host_key_check_is_switched_off_only_in_so_many_words() -> None:
    """Nothing but `no_verify=1` switches the check of the host's key off."""
    for value, checked in (("1", False), ("0", True), ("", True)):
        service = parse(f"ssh://host/run/s?no_verify={value}")
        assert isinstance(service, SshService)
        assert service.login.check_host_key is checked


def test_default() -> None:
    """Without an address it is the user's own service, or what CONTAINER_HOST says."""
    assert default_service({}, uid=0) == "unix:///run/podman/podman.sock"
    assert default_service({"XDG_RUNTIME_DIR": "/run/user/7"}, uid=7) == "unix:///run/user/7/podman/podman.sock"
    assert default_service({"CONTAINER_HOST": "ssh://host"}, uid=0) == "ssh://host"
