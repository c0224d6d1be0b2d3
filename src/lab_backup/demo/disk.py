"""Disks of guests: image files with an ext4 file system, made without privileges and without mounting anything."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab_backup.demo.account import Account
from lab_backup.demo.tool import run_tool

Format = Literal["qcow2", "raw"]

_TOOL_SECONDS = 300


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk of a guest: an image file and the place that the guest sees it at."""

    path: Path
    target: str = "vda"
    format: Format = "qcow2"


def make_disk(
    path: Path, size: int, account: Account, *, content: Path | None = None, image_format: Format = "qcow2"
) -> None:
    """Make the thin image `path` of `size` bytes, with an ext4 that holds the files of the folder `content`.

    Owners, modes, times and links are kept (mkfs.ext4 -d). The image belongs to `account`. Raises DemoError.
    """
    with tempfile.TemporaryDirectory(prefix=".disk-", dir=path.parent) as scratch:
        raw = Path(scratch) / "raw"
        with raw.open("xb") as file:
            file.truncate(size)
        # Nothing is left for the guest's kernel to initialise later, so an idle guest writes nothing.
        options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
        source = [] if content is None else ["-d", str(content)]
        run_tool(["mkfs.ext4", *options, *source, raw], timeout=_TOOL_SECONDS)
        made = raw
        if image_format == "qcow2":
            made = Path(scratch) / "qcow2"
            run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made], timeout=_TOOL_SECONDS)
        account.own(made)
        made.rename(path)


def make_empty_disk(path: Path, size: int, account: Account, *, image_format: Format = "qcow2") -> None:
    """Make the thin image `path` of `size` zero bytes, which belongs to `account`. Raises DemoError."""
    run_tool(["qemu-img", "create", "-q", "-f", image_format, path, str(size)], timeout=_TOOL_SECONDS)
    account.own(path)
