"""NBD over TLS with certificates, against nbdkit and qemu-nbd."""

import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab_backup.nbd.address import TcpAddress, UnixAddress
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdNegotiationError
from lab_backup.nbd.protocol import ALLOCATION
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.units import MiB
from support.certificates import Authority
from support.nbdkit import nbdkit, run, running
from support.waiting import wait_until


@dataclass(frozen=True)
class Trust:
    """Certificates of one authority, and those of another that nobody here trusts."""

    server: Path
    client: Path
    stranger: Path


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """Make the certificates, once."""
    directory = tmp_path_factory.mktemp("pki")
    ours, other = Authority(directory / "ca"), Authority(directory / "other", "Other authority")
    return Trust(
        server=ours.server(directory / "server"),
        client=ours.client(directory / "client"),
        stranger=other.client(directory / "stranger"),
    )


def free_port() -> int:
    """Return a port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port(trust: Trust, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run nbdkit with TLS and client certificates required, on loopback."""
    number = free_port()
    tls = ["--tls=require", f"--tls-certificates={trust.server}", "--tls-verify-peer"]
    listen = ["--ipaddr=127.0.0.1", f"--port={number}"]
    with running("nbdkit", *listen, *tls, "pattern", "8M", ready=tmp_path_factory.mktemp("tls") / "pid"):
        yield number


def test_a_disk_is_read_and_mapped_over_tls(trust: Trust, port: int) -> None:
    """Data, extents and disconnection work as without TLS; the host may be a name or an address."""
    credentials = TlsCredentials.from_directory(trust.client)
    for host in ("localhost", "127.0.0.1"):
        with NbdClient.connect(TcpAddress(host, port), "", contexts=[ALLOCATION], tls=credentials) as client:
            data = bytearray(3 * MiB)
            client.read_into(MiB, memoryview(data))
            assert data[:8] == MiB.to_bytes(8, "big")
            assert data[-8:] == (4 * MiB - 8).to_bytes(8, "big")
            assert list(client.status(ALLOCATION)) == [(0, 8 * MiB, 0)]


def test_a_server_that_insists_on_tls_says_so(port: int) -> None:
    """Without credentials the error tells what is missing."""
    with pytest.raises(NbdNegotiationError, match="insists on TLS"):
        NbdClient.connect(TcpAddress("127.0.0.1", port), "")


def test_a_server_of_another_authority_is_not_trusted(trust: Trust, port: int) -> None:
    """A certificate that our authority did not sign ends the connection."""
    with pytest.raises(NbdNegotiationError, match="not to be trusted"):
        NbdClient.connect(TcpAddress("localhost", port), "", tls=TlsCredentials.from_directory(trust.stranger))


def test_a_server_of_another_name_is_not_trusted(trust: Trust, port: int) -> None:
    """A certificate for another host ends the connection, even if it is signed well."""
    credentials = replace(TlsCredentials.from_directory(trust.client), hostname="vault.example")
    with pytest.raises(NbdNegotiationError, match=r"not to be trusted.*mismatch") as caught:
        NbdClient.connect(TcpAddress("localhost", port), "", tls=credentials)
    assert "vault.example" in str(caught.value.hint)


@pytest.mark.parametrize("shown", ["none", "stranger"])
def test_a_refused_client_certificate_is_told(trust: Trust, port: int, shown: str) -> None:
    """With no certificate, or one of an unknown authority, the error speaks of our certificate."""
    credentials = TlsCredentials(authority=trust.client / "ca-cert.pem")
    if shown == "stranger":
        certificate, key = trust.stranger / "client-cert.pem", trust.stranger / "client-key.pem"
        credentials = replace(credentials, certificate=certificate, key=key)
    with pytest.raises(NbdNegotiationError) as caught:
        NbdClient.connect(TcpAddress("localhost", port), "", tls=credentials)
    assert "client certificate" in str(caught.value.hint)


def test_a_server_without_tls_is_refused(trust: Trust) -> None:
    """Asking for TLS never ends in clear text."""
    credentials = replace(TlsCredentials.from_directory(trust.client), hostname="localhost")
    with nbdkit("--tls=off", "memory", "1M") as address, pytest.raises(NbdNegotiationError, match="does not offer TLS"):
        NbdClient.connect(address, "", tls=credentials)


def test_qemu_serves_over_tls_through_a_unix_socket(trust: Trust, short_directory: Path) -> None:
    """QEMU's TLS works too, through a socket that has no host name, with the name that the caller says."""
    image = short_directory / "disk.raw"
    image.write_bytes(random.Random(1).randbytes(2 * MiB))
    path = UnixAddress(short_directory / "s")
    tls = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={trust.server}"
    command = ["qemu-nbd", "--read-only", "--format=raw", f"--socket={path}", "--persistent", "--object", tls]
    with subprocess.Popen([*command, "--tls-creds=tls", str(image)]) as server:
        try:
            wait_until(path.path.exists)
            credentials = replace(TlsCredentials.from_directory(trust.client), hostname="localhost")
            with NbdClient.connect(path, "", tls=credentials) as client:
                data = bytearray(client.size)
                client.read_into(0, memoryview(data))
                assert data == image.read_bytes()
        finally:
            server.terminate()
            server.wait(10)


def test_old_versions_of_tls_are_not_spoken(trust: Trust) -> None:
    """Nothing below TLS 1.2, and always with the peer's certificate and name checked."""
    context = TlsCredentials.from_directory(trust.client).context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_files_that_cannot_be_used_are_named(trust: Trust, tmp_path: Path) -> None:
    """A missing authority, a key that does not fit, and an encrypted key are told by name, with no question asked."""
    with pytest.raises(NbdNegotiationError, match=r"nowhere/ca-cert\.pem"):
        TlsCredentials.from_directory(tmp_path / "nowhere").context()
    mixed = Path(shutil.copytree(trust.client, tmp_path / "mixed"))
    shutil.copy(trust.stranger / "client-key.pem", mixed)
    with pytest.raises(NbdNegotiationError, match=r"mixed/client-cert\.pem"):
        TlsCredentials.from_directory(mixed).context()
    locked = Path(shutil.copytree(trust.client, tmp_path / "locked"))
    key = str(locked / "client-key.pem")
    run("openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(trust.client / "client-key.pem"), "-out", key)
    with pytest.raises(NbdNegotiationError, match=r"locked/client-cert\.pem"):
        TlsCredentials.from_directory(locked).context()
    broken = Path(shutil.copytree(trust.client, tmp_path / "broken"))
    (broken / "ca-cert.pem").write_text("no certificate")
    with pytest.raises(NbdNegotiationError, match=r"broken/ca-cert\.pem"):
        TlsCredentials.from_directory(broken).context()


def test_a_client_certificate_is_optional(trust: Trust, tmp_path: Path) -> None:
    """A directory with an authority alone makes credentials without a certificate."""
    shutil.copy(trust.client / "ca-cert.pem", tmp_path)
    credentials = TlsCredentials.from_directory(tmp_path)
    assert (credentials.certificate, credentials.key) == (None, None)
    credentials.context()
