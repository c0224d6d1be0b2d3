"""The SSH tunnel, through an sshd of the test's own on loopback."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError, NotFoundError, UsageError
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError
from lab_backup.nbd.server import QemuNbd
from lab_backup.nbd.tunnel import SshHost, SshTunnel, TunnelError
from support.waiting import has_ended, wait_until


@dataclass(frozen=True)
class Sshd:
    """A running sshd and how its one user logs in."""

    host: SshHost
    directory: Path


def make_key(path: Path) -> Path:
    """Make an unencrypted key pair at `path` and `path.pub`."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)
    return path


def free_port() -> int:
    """Return a port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Run an sshd with its own host key, configuration and port."""
    directory = tmp_path_factory.mktemp("sshd")
    host_key, identity = make_key(directory / "host"), make_key(directory / "identity")
    user = pwd.getpwuid(os.getuid()).pw_name
    port = free_port()
    (directory / "authorized_keys").write_text((directory / "identity.pub").read_text())
    kind, key = (directory / "host.pub").read_text().split()[:2]
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "AllowStreamLocalForwarding yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation needs it
    daemon = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        host = SshHost("127.0.0.1", user, port, identity=identity, known_hosts=directory / "known_hosts")
        yield Sshd(host, directory)
    finally:
        daemon.terminate()
        daemon.wait(10)


def wait_for_port(port: int) -> None:
    """Wait until something listens at `port`."""

    def connects() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    wait_until(connects)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make a raw image of random bytes."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(3 << 20))
    return path


def test_an_export_is_read_through_the_tunnel(sshd: Sshd, image: Path) -> None:
    """What comes out of the tunnel is what the far socket serves, over several connections at once."""
    with (
        QemuNbd(image, "raw") as server,
        SshTunnel(sshd.host, str(server.address)) as tunnel,
        NbdClient.connect(tunnel.address, "") as first,
        NbdClient.connect(tunnel.address, "") as second,
    ):
        for client in (first, second):
            data = bytearray(client.size)
            client.read_into(0, memoryview(data))
            assert data == image.read_bytes()


def test_nothing_remains_after_the_tunnel(sshd: Sshd, image: Path) -> None:
    """Leaving the context ends ssh, and the local socket has no file even while it is open."""
    before = set(Path("/tmp").glob("lab-backup-*"))  # noqa: S108 - looks there, makes nothing
    with QemuNbd(image, "raw") as server, SshTunnel(sshd.host, str(server.address)) as tunnel:
        assert tunnel.alive
        assert set(Path("/tmp").glob("lab-backup-*")) <= before  # noqa: S108
        pid = tunnel.pid
    assert not Path(f"/proc/{pid}").exists()


def test_ssh_dies_with_its_owner(sshd: Sshd, image: Path) -> None:
    """Killing the process that opened the tunnel leaves no ssh behind."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from lab_backup.nbd.tunnel import SshHost, SshTunnel\n"
        "user, port, identity, known_hosts, remote = sys.argv[1:]\n"
        "host = SshHost('127.0.0.1', user, int(port), Path(identity), Path(known_hosts))\n"
        "with SshTunnel(host, remote) as tunnel:\n"
        "    print(tunnel.pid, flush=True); time.sleep(60)\n"
    )
    host = sshd.host
    with QemuNbd(image, "raw") as server:
        arguments = [str(part) for part in (host.user, host.port, host.identity, host.known_hosts, server.address)]
        with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            assert Path(f"/proc/{pid}/comm").read_text().strip() == "ssh"
            owner.send_signal(signal.SIGKILL)
    wait_until(lambda: has_ended(pid))


def test_a_remote_socket_that_is_not_there_is_a_clear_error(sshd: Sshd, tmp_path: Path) -> None:
    """The connection through the tunnel fails as a lost connection, and ssh's words say why."""
    with SshTunnel(sshd.host, str(tmp_path / "absent")) as tunnel:
        with pytest.raises(NbdConnectionError):
            NbdClient.connect(tunnel.address, "", timeout=5)
        wait_until(lambda: "open failed" in tunnel.said)


def test_an_unknown_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    """An unknown host is never trusted silently, unless the caller says so."""
    empty = tmp_path / "known_hosts"
    empty.touch()
    stranger = replace(sshd.host, known_hosts=empty)
    with pytest.raises(AccessDeniedError, match="host key"), SshTunnel(stranger, "/run/nbd"):
        pass
    with SshTunnel(replace(stranger, check_host_key=False), "/run/nbd") as tunnel:
        assert tunnel.alive


def test_a_changed_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    """A host that shows another key than the known one gets no connection."""
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.host.port} {' '.join(other)}\n")
    with (
        pytest.raises(AccessDeniedError, match="host key"),
        SshTunnel(replace(sshd.host, known_hosts=known), "/run/nbd"),
    ):
        pass


def test_a_wrong_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    """A key that the host does not accept ends in an error about the login, with no question asked."""
    stranger = replace(sshd.host, identity=make_key(tmp_path / "stranger"))
    with pytest.raises(AccessDeniedError, match="login"), SshTunnel(stranger, "/run/nbd"):
        pass


def test_a_closed_port_is_a_clear_error(sshd: Sshd) -> None:
    """A host on which no sshd answers is named."""
    with pytest.raises(TunnelError, match=r"127\.0\.0\.1.*nothing answers"):
        SshTunnel(replace(sshd.host, port=free_port()), "/run/nbd").__enter__()


def test_a_silent_host_is_given_up(sshd: Sshd) -> None:
    """A port that accepts and says nothing does not hold us longer than the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = int(silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(TunnelError), SshTunnel(replace(sshd.host, port=port), "/run/nbd", timeout=1):
            pass
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "", "a b", "a;b", "$(x)", "a\nb"])
def test_host_names_that_are_none_are_refused(host: str) -> None:
    """A host name can be neither an option nor anything a shell would read."""
    with pytest.raises(UsageError):
        SshHost(host)


@pytest.mark.parametrize("remote", ["relative", "/a:b", "/a b", "/%d", "/${HOME}", "-x", ""])
def test_remote_sockets_that_ssh_would_expand_are_refused(remote: str) -> None:
    """Nothing in the remote path can become another port forwarding or a variable."""
    with pytest.raises(UsageError):
        SshTunnel(SshHost("localhost"), remote)


def test_files_that_do_not_exist_are_named(tmp_path: Path) -> None:
    """A missing identity file is an error at once, not a refused login later."""
    with pytest.raises(NotFoundError, match="nowhere"):
        SshHost("localhost", identity=tmp_path / "nowhere")
