"""Run a Python file with a small file system of its own, which vanishes with the process, whatever ends it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

FileSystem = Literal["tmpfs", "ext4"]

# Everybody may mount a tmpfs in a namespace of his own; a loop device needs the real root.
FILE_SYSTEMS: list[FileSystem] = ["tmpfs", "ext4"] if os.geteuid() == 0 else ["tmpfs"]
TIMEOUT = 120  # seconds

_MOUNT_AND_RUN = """
set -eu
mountpoint=$1; kind=$2; size=$3; image=$4; shift 4
if [ "$kind" = tmpfs ]; then
    mount -t tmpfs -o "size=$size" none "$mountpoint"
else
    truncate -s "$size" "$image"
    "mkfs.$kind" -q "$image"
    mount -o loop "$image" "$mountpoint"
fi
exec "$@"
"""


def run_on_small_disk(script: Path, folder: Path, kind: FileSystem, size: int, *arguments: str) -> str:
    """Run `script MOUNTPOINT ARGUMENT...` with `size` bytes of `kind` mounted in `folder`, and return what it printed.

    The mount lives in a mount namespace of the script's own. Raises AssertionError with the script's errors if it fails.
    """
    mountpoint = folder / "disk"
    mountpoint.mkdir()
    namespace = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = ["sh", "-c", _MOUNT_AND_RUN, "sh", str(mountpoint), kind, str(size), str(folder / "disk.img")]
    done = subprocess.run(
        [*namespace, *mount, sys.executable, str(script), str(mountpoint), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{script.name} on {kind} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout
