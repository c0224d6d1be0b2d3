"""Dirty bitmaps where they really are: in a running QEMU, seen over its monitor, and in the qcow2 images of a VM that is off.

libvirt's checkpoints are only a memory of them, and may be wrong.

https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html (query-block, block-dirty-bitmap-remove)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_backup.sources.libvirt import image, monitor
from lab_backup.sources.libvirt.domain import Disk


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap of one disk. `node` is the QEMU node that holds it, "" in an image that is not in use.

    `dirty` counts the bytes that it marks, where that is known. One that is not `usable` was not closed properly.
    """

    name: str
    node: str
    usable: bool
    dirty: int | None = None


def live(domain: Any, disks: tuple[Disk, ...]) -> dict[str, dict[str, Bitmap]]:
    """Return the bitmaps in the topmost image of each disk of a running virDomain, by target and name.

    Asking QEMU directly makes libvirt mark the domain as tainted, so this is for when libvirt's own answer is no.
    """
    found: dict[str, dict[str, Bitmap]] = {disk.target: {} for disk in disks}
    for device in monitor.command(domain, "query-block"):
        inserted = device.get("inserted") or {}
        parts = str(device.get("qdev", "")).split("/")
        disk = next((disk for disk in disks if disk.alias and disk.alias in parts), None)
        if disk is None:
            continue
        for item in inserted.get("dirty-bitmaps") or ():
            usable = not item.get("inconsistent") and bool(item.get("recording"))
            bitmap = Bitmap(str(item.get("name", "")), str(inserted.get("node-name", "")), usable, int(item["count"]))
            found[disk.target][bitmap.name] = bitmap
    return found


def remove_live(domain: Any, bitmap: Bitmap) -> None:
    """Remove `bitmap` from a running virDomain."""
    monitor.command(domain, "block-dirty-bitmap-remove", node=bitmap.node, name=bitmap.name)


def in_image(path: Path) -> dict[str, Bitmap]:
    """Return the bitmaps in the qcow2 image at `path`, which may be in use (then what was true at its last opening)."""
    data = image.info(path, "qcow2").get("format-specific", {}).get("data", {})
    return {
        str(item["name"]): Bitmap(str(item["name"]), "", "in-use" not in item["flags"] and "auto" in item["flags"])
        for item in data.get("bitmaps", ())
    }


def add_to_image(path: Path, name: str) -> None:
    """Add a bitmap that records from now on to the qcow2 image at `path`, which nobody has open."""
    image.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", "--", str(path), name], f"add a bitmap to image {path}")


def remove_from_image(path: Path, name: str) -> None:
    """Remove a bitmap from the qcow2 image at `path`, which nobody has open; no error where it has none of that name."""
    if name in in_image(path):
        image.run(
            ["qemu-img", "bitmap", "--remove", "-f", "qcow2", "--", str(path), name], f"remove a bitmap of {path}"
        )
