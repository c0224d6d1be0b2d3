"""Backups of VMs on another host: a libvirtd of the test's own, reached through an sshd and over TLS on loopback."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab_backup.demo.accelerator import Accelerator
from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.guest import GuestImage
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.errors import LabBackupError, UsageError
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.sources.libvirt.bitmap import in_image
from lab_backup.sources.libvirt.request import Method
from lab_backup.sources.source import Consistency
from lab_backup.units import MiB
from support.certificates import Authority
from support.vm_backup import Repository, disk_content, kill_backup_at, traces
from support.waiting import wait_until

pytestmark = pytest.mark.libvirt


def free_port() -> int:
    """Return a port of loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether something accepts connections at `port`."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Far:
    """The other host: its hypervisor, and the two ways to it."""

    hypervisor: Hypervisor
    ssh: str
    tls: str
    credentials: TlsCredentials
    stranger: TlsCredentials


@pytest.fixture(scope="module")
def far(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """Run a libvirtd that listens for TLS, and an sshd beside it."""
    with ExitStack() as stack:
        host = stack.enter_context(Hypervisor(guest_image, accelerator=Accelerator.TCG))
        certificates = make_certificates(host.directory)
        tls_port, ssh_port = free_port(), free_port()
        stack.enter_context(listening(host, certificates, tls_port))
        identity = stack.enter_context(sshd(tmp_path_factory.mktemp("sshd"), ssh_port))
        path = f"{host.directory}/run/libvirt/libvirt-sock"
        user = pwd.getpwuid(os.getuid()).pw_name
        yield Far(
            host,
            f"qemu+ssh://{user}@127.0.0.1:{ssh_port}/session?socket={path}&keyfile={identity}&no_verify=1"
            f"&netcat={netcat(host.directory)}",
            f"qemu+tls://127.0.0.1:{tls_port}/session?pkipath={certificates / 'pki'}",
            TlsCredentials.from_directory(certificates / "client"),
            TlsCredentials.from_directory(certificates / "stranger"),
        )


def netcat(directory: Path) -> Path:
    """Make what libvirt's client runs on the far side instead of `nc -U SOCKET`, which is not installed everywhere."""
    path = directory / "netcat"
    path.write_text(f"#!{sys.executable}\n{_NETCAT}")
    path.chmod(0o755)
    return path


_NETCAT = """import os, select, socket, sys
far = socket.socket(socket.AF_UNIX)
far.connect(sys.argv[-1])
ways = {0: far.fileno(), far.fileno(): 1}
while True:
    for ready in select.select(list(ways), [], [])[0]:
        data = os.read(ready, 65536)
        if not data:
            sys.exit()
        while data:
            data = data[os.write(ways[ready], data):]
"""


def make_certificates(directory: Path) -> Path:
    """Make what libvirtd, QEMU and a client need, and a client of an authority that nobody knows; return the folder."""
    folder = directory / "certificates"
    folder.mkdir(mode=0o755)
    authority, other = Authority(folder / "ca", key_type="rsa"), Authority(folder / "other", "Other authority")
    server, client = authority.server(folder / "server"), authority.client(folder / "client")
    other.client(folder / "stranger")
    pki = folder / "pki"
    pki.mkdir()
    for theirs, ours in {"cacert": "ca-cert", "clientcert": "client-cert", "clientkey": "client-key"}.items():
        shutil.copy(client / f"{ours}.pem", pki / f"{theirs}.pem")
    for path in server.iterdir():
        path.chmod(0o644)
    return folder


@contextmanager
def listening(host: Hypervisor, certificates: Path, port: int) -> Iterator[None]:
    """Replace the daemon of `host` by one that listens at `port` too, and whose QEMUs serve backups over TLS."""
    assert host._daemon is not None
    environ = Path(f"/proc/{host._daemon.pid}/environ").read_text().split("\0")
    environment = dict(entry.split("=", 1) for entry in environ if entry)
    host.stop()
    server = certificates / "server"
    (qemu_configuration,) = host.directory.rglob("qemu.conf")
    with qemu_configuration.open("a") as settings:
        settings.write(f'backup_tls_x509_cert_dir = "{server}"\nbackup_tls_x509_verify = 1\n')
    configuration = host.directory / "libvirtd.conf"
    configuration.write_text(
        f'listen_tls = 1\nlisten_tcp = 0\nlisten_addr = "127.0.0.1"\ntls_port = "{port}"\n'
        f'key_file = "{server}/server-key.pem"\ncert_file = "{server}/server-cert.pem"\nca_file = "{server}/ca-cert.pem"\n'
    )
    with (host.directory / "libvirtd.log").open("ab") as log:
        command = ["libvirtd", "--listen", "-f", str(configuration)]
        daemon = host.account.start(command, output=log, environment=environment)
    try:
        wait_until(lambda: listens(port), 30)
        yield
    finally:
        daemon.terminate()
        daemon.wait(20)


@contextmanager
def sshd(directory: Path, port: int) -> Iterator[Path]:
    """Run an sshd, and return the key that it lets in."""
    for name in ("host", "identity"):
        command = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, timeout=30)
    (directory / "authorized_keys").write_text((directory / "identity.pub").read_text())
    (directory / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "AllowStreamLocalForwarding yes\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation needs it
    daemon = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "config")], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: listens(port))
        yield directory / "identity"
    finally:
        daemon.terminate()
        daemon.wait(10)


@pytest.fixture(scope="module")
def folder(far: Far) -> Iterator[Path]:
    """Return a folder for the images of this module's guest."""
    path = Path(tempfile.mkdtemp(prefix="r-", dir=far.hypervisor.directory))
    far.hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def machine(far: Far, folder: Path) -> Iterator[Guest]:
    """Return a guest with firmware on the other host, which all tests of the module share."""
    disk = DiskSpec(folder / "a.qcow2")
    make_disk(disk.path, 32 * MiB, far.hypervisor.account)
    guest = define_guest(far.hypervisor, "remote", [disk], uefi=True)
    yield guest
    guest.remove()


@pytest.fixture
def running(machine: Guest, far: Far) -> Iterator[Guest]:
    """Return the shared guest, running; after the test no backup has left anything on the other host."""
    if not machine.running:
        machine.start()
    machine.wait_ready()
    yield machine
    wait_until(lambda: traces(machine, far.hypervisor.directory) == [], 20)


@pytest.mark.parametrize("way", ["ssh", "tls"])
def test_a_running_vm_of_another_host_is_backed_up_incrementally(
    running: Guest, far: Far, folder: Path, way: str
) -> None:
    """Full and incremental through SSH and over TLS: exact, consistent, and only what changed is read."""
    repository = Repository(getattr(far, way), running.name)
    options: dict[str, Any] = {"tls": far.credentials} if way == "tls" else {}
    first = repository.back_up(**options)
    assert (first.consistency, first.incremental) == (Consistency.FILESYSTEM, {"vda": False})
    assert any("NVRAM" in note for note in first.notes)
    running.shell("head -c 1048576 /dev/urandom >/mnt/vda/new; sync")
    running.domain.suspend()
    try:
        second = repository.back_up(**options)
        assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
    finally:
        running.domain.resume()
    assert second.incremental == {"vda": True}
    assert second.read["vda"] < 3 * MiB


def test_killing_a_remote_backup_frees_the_guest(running: Guest, far: Far) -> None:
    """The guard has its own way to the other host, and ends the job there."""
    with kill_backup_at(Repository(far.ssh, running.name), "open") as child:
        assert running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED
        child.kill()
        wait_until(lambda: running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, 15)
    wait_until(lambda: not running.domain.listAllCheckpoints(0) or "killed" not in str(checkpoints(running)), 15)


def checkpoints(guest: Guest) -> list[str]:
    """Return the names of the guest's checkpoints."""
    return sorted(item.getName() for item in guest.domain.listAllCheckpoints(0))


def test_a_stranger_gets_no_data_over_tls(running: Guest, far: Far) -> None:
    """With certificates of another authority the disks cannot be read, and the job is ended."""
    with pytest.raises(LabBackupError):
        Repository(far.tls, running.name).back_up(tls=far.stranger)
    assert running.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE


def test_a_vm_that_is_off_on_another_host_is_started_without_running(machine: Guest, far: Far, folder: Path) -> None:
    """Its disks are read from a paused QEMU, incrementally too; it is off again afterwards, and its images are tidy."""
    if machine.running:
        machine.destroy()
    repository = Repository(far.ssh, machine.name)
    assert repository.back_up().consistency is Consistency.OFFLINE
    taken = repository.back_up()
    assert (taken.incremental, taken.read) == ({"vda": True}, {"vda": 0})
    assert repository.disks["vda"] == disk_content(folder / "a.qcow2", "qcow2", folder)
    assert not machine.running
    bitmaps = [name for name in in_image(folder / "a.qcow2") if repository.id[:8] in name]
    assert bitmaps == [name for name in checkpoints(machine) if repository.id[:8] in name]
    assert len(bitmaps) == 1


def test_nvram_in_a_storage_pool_is_fetched(running: Guest, far: Far) -> None:
    """The firmware's variables of a remote VM are in the backup where they lie in a pool."""
    pool = far.hypervisor.connection().storagePoolCreateXML(
        f"<pool type='dir'><name>nvram</name><target><path>{far.hypervisor.directory}</path></target></pool>"
    )
    try:
        taken = Repository(far.ssh, running.name).back_up()
    finally:
        pool.destroy()
    assert taken.configuration["nvram"] == (far.hypervisor.directory / "remote.nvram").read_bytes()


def test_snapshots_and_clear_text_are_refused_at_a_distance(running: Guest, far: Far) -> None:
    """The method `snapshot` needs the images at hand; a refused login is an error of access, and changes nothing."""
    with pytest.raises(UsageError, match="not on this host"):
        Repository(far.ssh, running.name).back_up(method=Method.SNAPSHOT)
    with pytest.raises(LabBackupError):
        Repository(far.ssh.replace("keyfile=", "keyfile=/nonexistent"), running.name).back_up()
