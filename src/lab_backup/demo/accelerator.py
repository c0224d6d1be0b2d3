"""Whether guests run on this machine's processor (KVM) or are translated (TCG)."""

import os
import time
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from lab_backup.demo.account import Account
from lab_backup.demo.guest import GuestImage
from lab_backup.units import KiB

if TYPE_CHECKING:
    import subprocess

QEMU = "qemu-system-x86_64"
_PROBE_SECONDS = 3.0  # a kernel on working KVM speaks after 0.2 s, one on TCG after 1 s
_POLL_SECONDS = 0.05
_CONSOLE_SIZE = 64 * KiB  # the words come first


class Accelerator(StrEnum):
    """How guests execute; `auto` is KVM where a guest really boots with it, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"

    @property
    def domain_type(self) -> str:
        """The `type` of a libvirt domain."""
        return "kvm" if self is Accelerator.KVM else "qemu"


def kvm_boots(image: GuestImage, account: Account) -> bool:
    """Whether guests really run on KVM here, which takes up to 3 s to find out.

    `/dev/kvm` opens on machines where no guest ever executes an instruction, so nothing less than booting tells. Nothing is
    remembered: machines move.
    """
    return Path("/dev/kvm").exists() and kernel_speaks(Accelerator.KVM, image, account, seconds=_PROBE_SECONDS)


def kernel_speaks(accelerator: Accelerator, image: GuestImage, account: Account, *, seconds: float) -> bool:
    """Whether the kernel says anything on its serial line within `seconds`, in a QEMU that runs as `account` does.

    QEMU has ended when this returns.
    """
    with TemporaryFile() as console:
        machine = [
            "-machine",
            "q35",
            "-accel",
            accelerator,
            "-m",
            "192",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ]
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
        # Not by the file object: its position is QEMU's as well.
        if b"Linux version" in os.pread(console.fileno(), _CONSOLE_SIZE, 0):
            return True
        time.sleep(_POLL_SECONDS)
    return False
