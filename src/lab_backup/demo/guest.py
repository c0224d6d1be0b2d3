"""The guest of the demo and the tests: Debian's cloud kernel, and a system in memory of busybox and the guest agent.

The guest mounts every virtio disk that holds ext4 at `/mnt/<device>`, disks that are plugged in later too, and starts
the QEMU guest agent where the machine has its channel. It boots in 3 seconds without KVM.
"""

import hashlib
import io
import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab_backup.demo import initrd as initrd_module
from lab_backup.demo.errors import DemoError
from lab_backup.demo.initrd import Initrd
from lab_backup.demo.tool import run_tool

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
AGENT_PACKAGE: Final = "qemu-guest-agent"
BUSYBOX: Final = Path("/bin/busybox")
READY_LINE: Final = "GUEST READY"
"""What the guest writes to its serial console as soon as disks are mounted and the agent runs."""

_MODULES = (  # in the order in which they build upon each other
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)
_DOWNLOAD_SECONDS = 300  # 27 MB of packages; with the package lists another 10 MB
_UNPACK_SECONDS = 120

_INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /mnt /var/log
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
ln -sf /proc/self/mounts /etc/mtab
for module in $(cat /lib/modules/order); do insmod /lib/modules/$module.ko; done
for disk in /sys/block/vd*; do [ -e $disk ] && /sbin/disk-event add ${{disk##*/}}; done
uevent /sbin/disk-event &
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
    qemu-ga -d -m virtio-serial -p /dev/${{port##*/}} -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log \\
        -F/etc/qemu/fsfreeze-hook
done
echo "{READY_LINE} after $(cut -d' ' -f1 /proc/uptime) s"
while :; do sleep 1000; done
"""

# Called for a disk at start (add NAME), and for every kernel event (ACTION, SUBSYSTEM, DEVNAME in the environment).
# Making the mount point is one atomic step, so a disk is never mounted twice.
_DISK_EVENT = """#!/bin/sh
action=${1:-$ACTION}
disk=${2:-$DEVNAME}
[ -n "$1" ] || [ "$SUBSYSTEM" = block ] || exit 0
case $action:$disk in
    add:vd*) mkdir /mnt/$disk 2>/dev/null || exit 0
        mount -t ext4 /dev/$disk /mnt/$disk 2>/dev/null || rmdir /mnt/$disk ;;
    remove:vd*) umount -l /mnt/$disk && rmdir /mnt/$disk ;;
esac
"""

# What the agent runs for `guest-shutdown`, whatever its options are.
_SHUTDOWN = """#!/bin/sh
sync
for disk in /mnt/*; do umount $disk; done
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Paths of a kernel and an initial file system that boot together."""

    kernel: Path
    initrd: Path


def build_guest(directory: Path) -> GuestImage:
    """Return the guest of this recipe from the cache `directory`, making it first where it is not there.

    Building takes the current kernel and guest agent from Debian's archive (27 MB, by `apt-get download`, which needs
    no privileges and installs nothing). Any number of processes may build at once; each sees whole images only. The
    cache is rebuilt when the recipe or this machine's busybox changes. Raises DemoError.
    """
    cached = directory / _recipe()
    image = GuestImage(cached / "vmlinuz", cached / "initrd.img")
    if cached.is_dir():
        return image
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as scratch:
        work = Path(scratch)
        kernel, agent = _download(work)
        made = work / "image"
        made.mkdir()
        boot = _unpack(kernel, r"boot/vmlinuz-.*")
        (made / "vmlinuz").write_bytes(next(iter(boot.values())))
        (made / "initrd.img").write_bytes(_build_initrd(work, kernel, agent))
        try:
            made.rename(cached)
        except OSError:
            if not cached.is_dir():  # another process was faster; its image is as good
                raise
    return image


def _recipe() -> str:
    digest = hashlib.sha256()
    for path in (__file__, initrd_module.__file__, BUSYBOX):
        try:
            digest.update(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise DemoError(f"{path} does not exist", hint="run make setup, which installs busybox-static") from error
    return digest.hexdigest()[:16]


def _download(work: Path) -> tuple[Path, Path]:
    """Return the packages of kernel and agent. Where the system's package lists are stale or missing, fetch own ones."""
    plain = ("-q", "-o", "APT::Sandbox::User=root")  # as root, apt would warn that it cannot drop its privileges here
    private = (*plain, "-o", f"Dir::State={work}/state", "-o", f"Dir::Cache={work}/cache")
    try:
        return _download_with(plain, work)
    except DemoError:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        run_tool(["apt-get", *private, "update"], timeout=_DOWNLOAD_SECONDS)
        return _download_with(private, work)


def _download_with(options: tuple[str, ...], work: Path) -> tuple[Path, Path]:
    about = run_tool(["apt-cache", *options[1:], "show", "--no-all-versions", KERNEL_PACKAGE], timeout=60).decode()
    current = re.search(r"^Depends:.*?\b(linux-image-\d\S*)", about, re.MULTILINE)
    if current is None:
        raise DemoError(f"the package {KERNEL_PACKAGE} names no kernel")
    run_tool(["apt-get", *options, "download", current[1], AGENT_PACKAGE], timeout=_DOWNLOAD_SECONDS, directory=work)
    return _only(work.glob("linux-image-*.deb")), _only(work.glob(f"{AGENT_PACKAGE}_*.deb"))


def _only(paths: Iterable[Path]) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise DemoError("apt-get download left no package, or several", hint="run apt-get update and try again")
    return found[0]


def _unpack(package: Path, pattern: str) -> dict[str, bytes]:
    """Return the regular files of a Debian package whose path matches `pattern`; at least one, else DemoError."""
    archive = run_tool(["dpkg-deb", "--fsys-tarfile", package], timeout=_UNPACK_SECONDS)
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isreg() and re.fullmatch(pattern, name) and (content := tar.extractfile(member)) is not None:
                files[name] = content.read()
    if not files:
        raise DemoError(f"the package {package.name} holds no file {pattern}")
    return files


def _build_initrd(work: Path, kernel: Path, agent: Path) -> bytes:
    system = Initrd()
    system.file("/bin/busybox", BUSYBOX.read_bytes(), 0o755)
    system.file("/init", _INIT.encode(), 0o755)
    system.file("/sbin/disk-event", _DISK_EVENT.encode(), 0o755)
    system.file("/sbin/shutdown", _SHUTDOWN.encode(), 0o755)
    system.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    system.file("/etc/group", b"root:x:0:\n")
    _add_modules(system, kernel)
    _add_agent(system, work, agent)
    return system.to_bytes()


def _add_modules(system: Initrd, kernel: Path) -> None:
    """Add the drivers of virtio disks and consoles; what is built into the kernel needs no module."""
    files = _unpack(kernel, rf".*/(modules\.builtin|({'|'.join(_MODULES)})\.ko(\.xz)?)")
    built_in = next(data.decode() for name, data in files.items() if name.endswith("modules.builtin"))
    modules = {Path(name).name.split(".")[0]: (name, data) for name, data in files.items()}
    order = []
    for module in _MODULES:
        if module not in modules:
            if f"/{module}.ko" not in built_in:
                raise DemoError(f"the kernel in {kernel.name} has no driver {module}")
            continue
        name, data = modules[module]
        system.file(f"/lib/modules/{module}.ko", lzma.decompress(data) if name.endswith(".xz") else data)
        order.append(module)
    system.file("/lib/modules/order", "\n".join(order).encode())


def _add_agent(system: Initrd, work: Path, agent: Path) -> None:
    """Add the guest agent, its freeze hook, and the shared libraries that it needs, taken from this machine."""
    files = _unpack(agent, r"usr/s?bin/qemu-ga|etc/qemu/fsfreeze-hook")
    program = next(data for name, data in files.items() if name.endswith("/qemu-ga"))
    system.file("/usr/sbin/qemu-ga", program, 0o755)
    system.file("/etc/qemu/fsfreeze-hook", files["etc/qemu/fsfreeze-hook"], 0o755)
    system.folder("/etc/qemu/fsfreeze-hook.d")
    binary = work / "qemu-ga"
    binary.write_bytes(program)
    binary.chmod(0o755)
    listing = run_tool(["ldd", binary], timeout=60).decode()
    missing = re.findall(r"(\S+) => not found", listing)
    if missing:
        raise DemoError(f"the guest agent needs {', '.join(missing)}", hint="run make setup, which installs qemu-utils")
    for library in re.findall(r"(/\S+) \(0x", listing):
        folder = "/lib64" if Path(library).name.startswith("ld-linux") else "/lib/x86_64-linux-gnu"
        system.file(f"{folder}/{Path(library).name}", Path(library).read_bytes(), 0o755)
