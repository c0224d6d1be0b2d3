"""What the demo's guest holds: real files of this machine, and the odd ones that backups like to lose."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lab_backup.demo.machine import Guest
from lab_backup.units import MiB

_SOURCES = (
    "/usr/bin",
    "/usr/lib/python3",
    "/usr/lib/python3.11",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib",
    "/usr/share",
)
_SETTLED_SECONDS = 2.5
_LARGEST = 4 * MiB  # so that there are thousands of files rather than a few libraries

# Owners, modes and kinds of files that only root can make, so the guest makes them itself.
_ODD_FILES = r"""
mkdir -p /mnt/vda/odd && cd /mnt/vda/odd
echo 'umlauts and spaces' >'Grüße an alle.txt'
echo 'setuid' >setuid; chown 1000:1000 setuid; chmod 4750 setuid
echo 'a large id' >large-id; chown 400000:400001 large-id
ln -s ../odd/setuid symbolic-link; ln large-id hard-link
dd if=/dev/zero of=sparse bs=1 count=1 seek=268435455 2>/dev/null
mkfifo pipe; mknod device c 1 3; mkdir sticky; chmod 1777 sticky
mkdir /mnt/vda/data; dd if=/dev/urandom of=/mnt/vda/data/table bs=1M count=8 2>/dev/null
sync
"""

_CHANGES = r"""
cd /mnt/vda
dd if=/dev/urandom of=data/new bs=1M count=4 2>/dev/null
for block in 5 300 700 1100 1900; do
    dd if=/dev/urandom of=data/table bs=4k seek=$block count=1 conv=notrunc 2>/dev/null
done
echo 'one more line' >>'odd/Grüße an alle.txt'
rm odd/sparse; mv odd/large-id odd/renamed; chown 1001:1002 odd/setuid; chmod 600 odd/setuid
sync
"""

# One line per file: name, type and mode, owner, group, links, size, time; then the targets of links and all checksums.
_INVENTORY = r"""
cd /mnt/vda
find . -exec stat -c '%n|%f|%u|%g|%h|%s|%t,%T|%Y' {} + | sort
echo '--'
find . -type l | sort | while read -r link; do echo "$link -> $(readlink "$link")"; done
echo '--'
find . -type f -exec sha256sum {} + | sort -k 2
"""
_INVENTORY_SECONDS = 300


def copy_files(folder: Path, size: int) -> tuple[int, int]:
    """Copy readable files of this machine, about `size` bytes, below the new `folder`. Return their number and bytes."""
    count = copied = 0
    for source in _readable_files():
        if copied >= size:
            break
        target = folder / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        shutil.copy2(source, target)
        count += 1
        copied += source.stat().st_size
    return count, copied


def add_odd_files(guest: Guest) -> None:
    """Make files with unusual names, owners, modes and kinds on the guest's first disk."""
    guest.shell(_ODD_FILES)


def change_files(guest: Guest) -> None:
    """Add 4 MiB, overwrite five blocks of 4 KiB in the middle of a file, append, delete, rename, change owner and mode."""
    guest.shell(_CHANGES)


def inventory(guest: Guest) -> list[str]:
    """Return every fact about every file of the guest's first disk that a restore has to bring back, one a line."""
    return guest.shell(_INVENTORY, timeout=_INVENTORY_SECONDS).splitlines()


def _readable_files() -> Iterator[Path]:
    for source in _SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                    continue
                if 0 < path.stat().st_size <= _LARGEST:
                    yield path


def let_settle() -> None:
    """Wait until files just written have an age at which an unchanged change time proves that they are unchanged.

    Younger ones are read once more by the next backup, for the clock of change times ticks too slowly to tell.
    """
    time.sleep(_SETTLED_SECONDS)
