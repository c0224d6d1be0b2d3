"""Whether guests run on this machine's processor (KVM) or are translated (TCG)."""

import time
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from lab_backup.demo.account import Account
from lab_backup.demo.guest import GuestImage

if TYPE_CHECKING:
    import subprocess

QEMU = "qemu-system-x86_64"
_PROBE_SECONDS = 3.0  # a kernel on working KVM speaks after 0.2 s, one on TCG after 1 s
_POLL_SECONDS = 0.05


class Accelerator(StrEnum):
    """How guests execute; `auto` is KVM where a guest really boots with it, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"

    @property
    def domain_type(self) -> str:
        """The `type` of a libvirt domain."""
        return "kvm" if self is Accelerator.KVM else "qemu"


def kvm_boots(image: GuestImage, account: Account, *, seconds: float = _PROBE_SECONDS) -> bool:
    """Whether a kernel that runs on KVM says anything on its serial line within `seconds`.

    `/dev/kvm` opens on machines where no guest ever executes an instruction, so nothing less than booting tells. QEMU
    runs as `account` does, and has ended when this returns. Nothing is remembered: a probe is short, and machines move.
    """
    if not Path("/dev/kvm").exists():
        return False
    with TemporaryFile() as console:
        machine = ["-machine", "q35", "-accel", "kvm", "-m", "192", "-nodefaults", "-no-reboot", "-display", "none"]
        kernel = ["-kernel", str(image.kernel), "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
        try:
            process = account.start([QEMU, *machine, *kernel], output=console)
        except FileNotFoundError:
            return False
        try:
            return _speaks(process, console, seconds)
        finally:
            process.kill()
            process.wait()


def _speaks(process: "subprocess.Popen[bytes]", console: IO[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        console.seek(0)  # reads only: QEMU shares this file position, but it has nothing to say that matters
        if b"Linux version" in console.read():
            return True
        time.sleep(_POLL_SECONDS)
    return False
