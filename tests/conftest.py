"""What the tests with real servers share: a short folder for sockets, a private hypervisor, and guests in it."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import platformdirs
import pytest

from lab_backup.demo.accelerator import Accelerator
from lab_backup.demo.disk import DiskSpec, make_disk
from lab_backup.demo.guest import GuestImage, build_guest
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.demo.machine import Guest, define_guest
from lab_backup.demo.podman_service import PodmanService
from lab_backup.units import MiB
from support.nfs import Ganesha
from support.samba import Samba
from support.seaweed import Seaweed

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("lab-backup", deadline=None)
hypothesis.settings.load_profile("lab-backup")

GuestFactory = Callable[..., Guest]
"""`factory(name="vm", disks=None, **options)`; see the fixture `guest_factory`."""


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """Let tests and what they start hear Ctrl-C and a lost terminal, also where the run ignores them.

    A job in the background ignores SIGINT, one under `nohup` SIGHUP, and every child would inherit that.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda _number, _frame: None)  # the run itself goes on; a new program starts without it
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Run a real S3 server for the whole session. Tests that kill it start it again."""
    with Seaweed(tmp_path_factory.mktemp("s3") / "seaweed") as server:
        yield server


@pytest.fixture(scope="session")
def samba() -> Iterator[Samba]:
    """Run a real SMB server for the whole session. Tests that stop it start it again."""
    with Samba(Path(tempfile.mkdtemp(prefix="lb-smb-"))) as server:
        yield server


@pytest.fixture(scope="session")
def ganesha() -> Iterator[Ganesha]:
    """Run a real NFS server for the whole session. Tests that stop it start it again."""
    with Ganesha(Path(tempfile.mkdtemp(prefix="lb-nfs-"))) as server:
        yield server


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Return a new folder whose path is short enough for unix sockets (107 bytes), which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="lb-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """Return the kernel and initial file system of the test guests, from the user's cache after the first run."""
    return build_guest(platformdirs.user_cache_path("lab-backup") / "guest")


@pytest.fixture(scope="session")
def hypervisor(guest_image: GuestImage) -> Iterator[Hypervisor]:
    """Run a private libvirtd for the whole session. Tests that restart it may; tests that stop it start it again."""
    # TCG behaves the same on every machine; a /dev/kvm that opens but runs nothing is common in nested environments.
    accelerator = Accelerator(os.environ.get("LAB_BACKUP_DEMO_ACCEL", "tcg"))
    with Hypervisor(guest_image, accelerator=accelerator) as running:
        yield running


@contextmanager
def _guest_directory(hypervisor: Hypervisor) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t-", dir=hypervisor.directory))
    hypervisor.account.own(path)
    yield path
    shutil.rmtree(path)


@contextmanager
def _guest_factory(hypervisor: Hypervisor, directory: Path) -> Iterator[GuestFactory]:
    def make(name: str = "vm", disks: list[DiskSpec] | None = None, **options: bool | int) -> Guest:
        if disks is None:
            content = directory / f"{name}.content"
            content.mkdir()
            (content / "hello").write_text("hello\n")
            disks = [DiskSpec(directory / f"{name}.qcow2")]
            make_disk(disks[0].path, 64 * MiB, hypervisor.account, content=content)
        return define_guest(hypervisor, name, disks, **options)  # type: ignore[arg-type] # mypy cannot split the options

    others = _domains(hypervisor)
    yield make
    for name in _domains(hypervisor) - others:
        Guest(hypervisor, name).remove()


def _domains(hypervisor: Hypervisor) -> set[str]:
    return {domain.name() for domain in hypervisor.connection().listAllDomains()}


@pytest.fixture
def guest_directory(hypervisor: Hypervisor) -> Iterator[Path]:
    """Return a new short folder that belongs to QEMU's account, for the images, sockets and scratch files of one test."""
    with _guest_directory(hypervisor) as path:
        yield path


@pytest.fixture
def guest_factory(hypervisor: Hypervisor, guest_directory: Path) -> Iterator[GuestFactory]:
    """Return a function that defines a guest, `factory(name="vm", disks=None, **options)` with those of `define_guest`.

    Without `disks` it gets one of 64 MiB in qcow2 with a file `hello`. Every domain that the test leaves behind in the
    hypervisor, also those that it restored, is destroyed and undefined at its end.
    """
    with _guest_factory(hypervisor, guest_directory) as factory:
        yield factory


@pytest.fixture
def guest(guest_factory: GuestFactory) -> Guest:
    """Return a running guest with one disk and the guest agent, ready for commands."""
    return guest_factory().start().wait_ready()


@pytest.fixture(scope="module")
def shared_guest(hypervisor: Hypervisor) -> Iterator[Guest]:
    """Return a running guest named `shared` as `guest` is, for the tests of a module that leave it running and usable."""
    with _guest_directory(hypervisor) as directory, _guest_factory(hypervisor, directory) as factory:
        yield factory("shared").start().wait_ready()


@pytest.fixture(scope="session")
def podman_service() -> Iterator[PodmanService]:
    """Run a private Podman service with one small image for the whole session. A test removes what it makes there."""
    with PodmanService() as service:
        yield service
