"""What is mounted on this host: /proc/self/mountinfo, proc_pid_mountinfo(5)."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")
NFS = frozenset({"nfs", "nfs4"})
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountPoint(NamedTuple):
    """A mounted file system: its device as (major, minor), which of its folders is mounted, where, its type, and what it is of."""

    device: tuple[int, int]
    root: str
    path: str
    kind: str
    source: str


def read_mounts(text: str) -> list[MountPoint]:
    """Return what the lines of a mountinfo file say; lines that cannot be understood are passed over."""
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(rest) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        if major.isdigit() and minor.isdigit():
            device = int(major), int(minor)
            found.append(MountPoint(device, *map(_plain, (fields[3], fields[4], rest[0], rest[1]))))
    return found


def mounts() -> list[MountPoint]:
    """Return what is mounted now."""
    return read_mounts(MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))


def _plain(text: str) -> str:
    """Undo the escapes of blanks, tabs, line breaks and backslashes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def covering(
    found: Iterable[MountPoint], source: str, *, kinds: frozenset[str] = NFS
) -> tuple[MountPoint, PurePosixPath] | None:
    """Return the mount that holds `source` (`server:/path`), and the way from its mount point to it; None where there is none.

    Of several the one that needs the shortest way. What another mount hides is not found.
    """
    server, _, wanted = source.partition(":/")
    best: tuple[MountPoint, PurePosixPath] | None = None
    top: dict[str, MountPoint] = {mount.path: mount for mount in found}  # a later one hides an earlier one at its place
    for mount in top.values():
        host, _, exported = mount.source.partition(":/")
        if mount.kind not in kinds or host != server:
            continue
        # Of a bind mount of a part of it, `root` says which part.
        held = PurePosixPath("/", exported, *PurePosixPath(mount.root).parts[1:])
        try:
            rest = PurePosixPath("/", wanted).relative_to(held)
        except ValueError:
            continue
        if best is None or len(rest.parts) < len(best[1].parts):
            best = mount, rest
    return best
