"""A guest under libvirt: define it, start it, run commands in it, end it in any way that happens to real ones."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from xml.sax.saxutils import escape, quoteattr

import libvirt
import libvirt_qemu
from defusedxml import ElementTree

from lab_backup.demo.disk import DiskSpec
from lab_backup.demo.errors import GuestError
from lab_backup.demo.guest import READY_LINE
from lab_backup.demo.hypervisor import Hypervisor
from lab_backup.units import KiB

AGENT_CHANNEL = "org.qemu.guest_agent.0"
_AGENT_SECONDS = 10  # one call to the agent; it answers in milliseconds, on a loaded machine in a few seconds
_POLL_SECONDS = 0.05
_SPARE_PORTS = 4  # disks that can be plugged in later

# Self-tests of algorithms that nobody uses here take half a second without KVM.
_KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 cryptomgr.notests pci=noaer"

_OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


class Guest:
    """A domain by name. It need not exist yet, and may be defined, restored or undefined by others meanwhile."""

    def __init__(self, hypervisor: Hypervisor, name: str) -> None:
        self.hypervisor = hypervisor
        self.name = name

    @property
    def domain(self) -> Any:
        """The libvirt object, looked up anew: it outlives restarts of the daemon. Raises GuestError."""
        try:
            return self.hypervisor.connection().lookupByName(self.name)
        except libvirt.libvirtError as error:
            raise GuestError(f"there is no guest {self.name}") from error

    @property
    def exists(self) -> bool:
        """Whether libvirt knows the domain."""
        return self.name in (domain.name() for domain in self.hypervisor.connection().listAllDomains())

    @property
    def running(self) -> bool:
        """Whether the domain is active, which a paused one is as well."""
        return self.exists and bool(self.domain.isActive())

    @property
    def console(self) -> str:
        """What the guest has written to its serial console since it was started; empty where nothing logs that."""
        log = ElementTree.fromstring(self.domain.XMLDesc()).find("devices/serial/log")
        path = None if log is None else Path(log.get("file", ""))
        return "" if path is None or not path.exists() else path.read_text(errors="replace")

    def start(self) -> Self:
        """Boot; returns at once."""
        with _asked(f"start the guest {self.name}"):
            self.domain.create()
        return self

    def wait_ready(self, timeout: float = 60) -> Self:
        """Wait until the agent answers, or for a guest without one until it says so on its console."""
        deadline = time.monotonic() + timeout
        has_agent = AGENT_CHANNEL in self.domain.XMLDesc()
        while not (self._agent_answers() if has_agent else READY_LINE in self.console):
            if not self.running:
                raise GuestError(f"the guest {self.name} ended while it was booting{self._last_words()}")
            if time.monotonic() > deadline:
                raise GuestError(f"the guest {self.name} was not ready after {timeout:g} s{self._last_words()}")
            time.sleep(_POLL_SECONDS)
        return self

    def shell(self, script: str, timeout: float = 120) -> str:
        """Run `script` with the guest's `sh` and return its output. Raises GuestError where it fails or takes longer.

        At most 16 MiB of output come through. A script that did not end in time runs on in the guest.
        """
        started = self._agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})
        deadline = time.monotonic() + timeout
        pause = 0.01
        while not (status := self._agent("guest-exec-status", pid=started["pid"]))["exited"]:
            if time.monotonic() > deadline:
                raise GuestError(f"in the guest {self.name} this took longer than {timeout:g} s: {script}")
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        output = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
        if status.get("exitcode") != 0:
            complaint = base64.b64decode(status.get("err-data", "")).decode(errors="replace").strip()
            raise GuestError(f"in the guest {self.name} this failed: {script}\n{complaint or output.strip()}")
        return output

    def attach(self, disk: DiskSpec) -> None:
        """Plug a disk into the running guest, for this run only."""
        with _asked(f"plug {disk.target} into the guest {self.name}"):
            self.domain.attachDevice(_disk_xml(disk))

    def detach(self, disk: DiskSpec) -> None:
        """Ask the running guest to let go of a disk. It is gone some moments later."""
        with _asked(f"unplug {disk.target} from the guest {self.name}"):
            self.domain.detachDevice(_disk_xml(disk))

    def monitor(self, command: str, **arguments: object) -> Any:
        """Ask QEMU itself (QMP), past libvirt, and return what it answers. Raises GuestError."""
        request = json.dumps({"execute": command, "arguments": arguments})
        with _asked(f"ask QEMU of the guest {self.name} for {command}"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, request, 0))
        if "return" not in answer:
            raise GuestError(f"QEMU of the guest {self.name} refuses {command}: {answer.get('error')}")
        return answer["return"]

    def shutdown(self, timeout: float = 60) -> None:
        """Have the guest unmount its disks and power off, and wait for that."""
        with _asked(f"shut down the guest {self.name}"):
            self.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        self._wait_off(timeout)

    def kill_qemu(self, timeout: float = 20) -> None:
        """End QEMU by SIGKILL, as a power failure of the host does, and wait until libvirt has noticed."""
        pid = self.hypervisor.qemu_pid(self.name)
        if pid is None:
            raise GuestError(f"the guest {self.name} is not running")
        os.kill(pid, signal.SIGKILL)
        self._wait_off(timeout)

    def destroy(self) -> None:
        """Pull the plug, where it is in."""
        if self.running:
            with _asked(f"destroy the guest {self.name}"):
                self.domain.destroy()

    def undefine(self) -> None:
        """Make libvirt forget the domain, its checkpoints and NVRAM included; disks stay. No error where there is none."""
        if not self.exists:
            return
        with _asked(f"undefine the guest {self.name}"):
            self.domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )

    def remove(self) -> None:
        """Destroy and undefine."""
        self.destroy()
        self.undefine()

    def _agent(self, command: str, **arguments: object) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        with _asked(f"have the agent in the guest {self.name} do {command}"):
            answer = libvirt_qemu.qemuAgentCommand(self.domain, request, _AGENT_SECONDS, 0)
        return json.loads(answer)["return"]

    def _agent_answers(self) -> bool:
        try:
            libvirt_qemu.qemuAgentCommand(self.domain, '{"execute":"guest-ping"}', 1, 0)
        except libvirt.libvirtError:
            return False
        return True

    def _wait_off(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise GuestError(f"the guest {self.name} was still running after {timeout:g} s{self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def _last_words(self) -> str:
        return "".join(f"\n  {self.name}: {line}" for line in self.console.splitlines()[-5:])


def define_guest(
    hypervisor: Hypervisor,
    name: str,
    disks: Sequence[DiskSpec],
    *,
    uefi: bool = False,
    tpm: bool = False,
    agent: bool = True,
    memory: int = 192,
) -> Guest:
    """Make libvirt know a guest with one processor, `memory` MiB and the virtio `disks`; start nothing.

    With `uefi` it has OVMF and an NVRAM of its own, with `tpm` an emulated TPM 2.0, with `agent` the channel of the
    guest agent. Its console goes to `<name>.console` in the hypervisor's directory.
    """
    definition = _domain_xml(hypervisor, name, disks, uefi, tpm, agent, memory)
    with _asked(f"define the guest {name}"):
        hypervisor.connection().defineXML(definition)
    return Guest(hypervisor, name)


def _domain_xml(
    hypervisor: Hypervisor,
    name: str,
    disks: Sequence[DiskSpec],
    uefi: bool,  # noqa: FBT001 - private
    tpm: bool,  # noqa: FBT001 - private
    agent: bool,  # noqa: FBT001 - private
    memory: int,
) -> str:
    directory, image = hypervisor.directory, hypervisor.image
    firmware = (
        f"<loader readonly='yes' type='pflash'>{_OVMF_CODE}</loader>"
        f"<nvram template='{_OVMF_VARIABLES}'>{_text(directory / f'{name}.nvram')}</nvram>"
    )
    return f"""
<domain type='{hypervisor.accelerator.domain_type}'>
  <name>{_text(name)}</name>
  <memory unit='KiB'>{memory * KiB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    {firmware if uefi else ""}
    <kernel>{_text(image.kernel)}</kernel>
    <initrd>{_text(image.initrd)}</initrd>
    <cmdline>{_KERNEL_OPTIONS}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    {"".join(_disk_xml(disk) for disk in disks)}
    <controller type='pci' index='0' model='pcie-root'/>
    {"<controller type='pci' model='pcie-root-port'/>" * (len(disks) + 2 + _SPARE_PORTS)}
    <controller type='usb' model='none'/>
    <serial type='null'><log file={quoteattr(str(directory / f"{name}.console"))} append='off'/></serial>
    {f"<channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel>" if agent else ""}
    {"<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>" if tpm else ""}
    <memballoon model='none'/>
  </devices>
</domain>"""


def _disk_xml(disk: DiskSpec) -> str:
    return f"""<disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}' discard='unmap'/>
      <source file={quoteattr(str(disk.path))}/>
      <target dev={quoteattr(disk.target)} bus='virtio'/>
    </disk>"""


def _text(value: object) -> str:
    return escape(str(value))


@contextmanager
def _asked(what: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        raise GuestError(f"libvirt could not {what}: {error}") from error
