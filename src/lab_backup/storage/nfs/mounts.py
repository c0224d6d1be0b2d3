"""What is mounted on this host: /proc/self/mountinfo, proc_pid_mountinfo(5)."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lab_backup.storage.nfs.address import STANDARD_PORT

MOUNTINFO = Path("/proc/self/mountinfo")
NFS = frozenset({"nfs", "nfs4"})
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountPoint(NamedTuple):
    """A mounted file system: its device as (major, minor), which of its folders is mounted, where, its type, what it is of, and its options."""

    device: tuple[int, int]
    root: str
    path: str
    kind: str
    source: str
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str | None:
        """Return the value of an option, "" for one without a value, None where it is not set."""
        return next(
            (value for key, _, value in (option.partition("=") for option in self.options) if key == name), None
        )


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
            options = tuple(rest[2].split(",")) if len(rest) > 2 else ()
            root, path, kind, source = map(_plain, (fields[3], fields[4], rest[0], rest[1]))
            found.append(MountPoint(device, root, path, kind, source, options))
    return found


def mounts() -> list[MountPoint]:
    """Return what is mounted now."""
    return read_mounts(MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))


def _plain(text: str) -> str:
    """Undo the escapes of blanks, tabs, line breaks and backslashes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def covering(
    found: Iterable[MountPoint], source: str, *, port: int = STANDARD_PORT, kinds: frozenset[str] = NFS
) -> tuple[MountPoint, PurePosixPath] | None:
    """Return the mount that holds `source` (`server:/path`, the server on `port`), and the way from its mount point to it; None where there is none.

    Of several the one that needs the shortest way. What another mount hides is not found.
    """
    server, _, wanted = source.partition(":/")
    best: tuple[MountPoint, PurePosixPath] | None = None
    top: dict[str, MountPoint] = {mount.path: mount for mount in found}  # a later one hides an earlier one at its place
    for mount in top.values():
        host, _, exported = mount.source.partition(":/")
        if mount.kind not in kinds or host.lower() != server.lower():
            continue
        # Another port is another server. The kernel shows it where it is not the standard one.
        if mount.kind in NFS and (int(mount.option("port") or 0) or STANDARD_PORT) != port:
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
