"""A private libvirt daemon: it shares nothing with the machine's own, needs no configuration, and leaves nothing.

It is a *session* daemon (libvirt.org: "Connection URIs") of an unprivileged account, with a home and a runtime folder
of its own below one short temporary directory. QEMU runs as that account, and may write anywhere in the directory.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from lab_backup.demo.accelerator import Accelerator, kvm_boots
from lab_backup.demo.account import Account
from lab_backup.demo.errors import DemoError
from lab_backup.demo.guest import GuestImage

_START_SECONDS = 60.0  # the first connection looks at every QEMU: 2 to 4 s on an idle machine
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_MAX_DIRECTORY = 22  # characters: below it libvirt puts sockets of up to 85, and a socket's path has at most 107
_OWN_PROGRAMS = ("libvirtd", "virtlogd", "swtpm", "qemu-")


class Hypervisor:
    """A context manager around the daemon. Leaving it ends the daemon, all its guests, and removes the directory."""

    def __init__(self, image: GuestImage, *, accelerator: Accelerator = Accelerator.AUTO) -> None:
        """Prepare, without starting anything. Guests boot a copy of `image`, which QEMU's account need not reach."""
        self.account = Account.for_hypervisor(kvm=False)
        self.accelerator = Accelerator.TCG
        """KVM or TCG, known once this is entered: what was asked for, or what a probe of at most 3 s found to work."""
        self._source = image
        self._wanted = accelerator
        self._directory: Path | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="lb-"))
        try:
            if len(str(self._directory)) > _MAX_DIRECTORY:
                raise DemoError(
                    f"the path {self._directory} is too long for libvirt's sockets",
                    hint="set TMPDIR to a short path, /tmp",
                )
            self._furnish()
            self._choose_accelerator()
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def directory(self) -> Path:
        """Where images, sockets and scratch files go: QEMU's account owns it, and its path is short."""
        if self._directory is None:
            raise DemoError("the private hypervisor is not running")
        return self._directory

    @property
    def uri(self) -> str:
        """Where to connect. It stays the same over restarts."""
        return f"qemu+unix:///session?socket={self.directory}/run/libvirt/libvirt-sock"

    @property
    def image(self) -> GuestImage:
        """The kernel and initial file system that its guests boot, readable for QEMU."""
        return GuestImage(self.directory / "vmlinuz", self.directory / "initrd.img")

    def connection(self) -> Any:
        """Return a living libvirt connection, a new one where the last was lost."""
        if self._connection is None or not self._connection.isAlive():
            self._connection = self._connect(time.monotonic() + _START_SECONDS)
        return self._connection

    def start(self) -> None:
        """Start the daemon, and wait until it answers. It takes over guests that run already."""
        environment = {
            "HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "XDG_CONFIG_HOME": str(self.directory / "c"),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }
        with (self.directory / "libvirtd.log").open("ab") as log:
            try:
                self._daemon = self.account.start(["libvirtd"], output=log, environment=environment)
            except FileNotFoundError as error:
                raise DemoError("libvirtd is not installed", hint="run make setup, which installs it") from error
        self._connection = self._connect(time.monotonic() + _START_SECONDS)

    def stop(self, *, kill: bool = False) -> None:
        """End the daemon alone, politely or (`kill`) by SIGKILL. Its guests run on."""
        self._connection = None
        if self._daemon is None:
            return
        self._daemon.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self._daemon.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        self._daemon = None

    def restart(self, *, kill: bool = False) -> None:
        """End the daemon as `stop` does, and start it anew. Its guests run on."""
        self.stop(kill=kill)
        self.start()

    def qemu_pid(self, domain: str) -> int | None:
        """Return the process of a running domain, or None."""
        try:
            pid = int((self.directory / "run/libvirt/qemu/run" / f"{domain}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid in self._processes() else None

    def _furnish(self) -> None:
        configuration = self.directory / "c/libvirt"
        configuration.mkdir(parents=True)
        (self.directory / "run").mkdir(mode=0o700)
        # Guests' console files are opened by libvirtd itself, so that no virtlogd is started and has to be ended.
        (configuration / "qemu.conf").write_text('stdio_handler = "file"\n')
        shutil.copyfile(self._source.kernel, self.image.kernel)
        shutil.copyfile(self._source.initrd, self.image.initrd)
        for path in (self.directory, *self.directory.rglob("*")):
            self.account.own(path)

    def _choose_accelerator(self) -> None:
        # Only then does QEMU's account get at /dev/kvm: where that is broken, libvirt's own look at it takes 5 s.
        with_kvm = Account.for_hypervisor(kvm=True)
        if self._wanted is Accelerator.KVM or (self._wanted is Accelerator.AUTO and kvm_boots(self.image, with_kvm)):
            self.account = with_kvm
            self.accelerator = Accelerator.KVM

    def _connect(self, deadline: float) -> Any:
        libvirt.registerErrorHandler(_ignore, None)  # errors are raised as exceptions; libvirt would print them as well
        while True:
            try:
                return libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                if self._daemon is None or self._daemon.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"the private libvirtd does not answer: {error}{self._log_tail()}") from error
            time.sleep(_POLL_SECONDS)

    def _log_tail(self) -> str:
        lines = (self.directory / "libvirtd.log").read_text(errors="replace").splitlines()
        return "".join(f"\n  libvirtd: {line}" for line in lines[-3:])

    def _end(self) -> None:
        self.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while left := list(self._processes()):
            for pid in left:
                _kill(pid)
            if time.monotonic() > deadline:
                raise DemoError(f"processes {left} of the private hypervisor do not end", hint=f"see {self.directory}")
            time.sleep(_POLL_SECONDS)
        shutil.rmtree(self.directory)
        self._directory = None

    def _processes(self) -> Iterator[int]:
        """Find what runs for this hypervisor, the daemon itself aside: its programs that name its directory."""
        marker = os.fsencode(self.directory)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or (self._daemon is not None and int(entry.name) == self._daemon.pid):
                continue
            try:
                arguments = (entry / "cmdline").read_bytes()
                program = os.fsdecode(os.path.basename(arguments.split(b"\0", 1)[0]))  # noqa: PTH119 - bytes, not a path
                if not program.startswith(_OWN_PROGRAMS):
                    continue
                if marker in arguments or marker in (entry / "environ").read_bytes():
                    yield int(entry.name)
            except OSError:  # it ended meanwhile, or is somebody else's
                continue


def _ignore(_context: object, _error: object) -> None:
    pass


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
