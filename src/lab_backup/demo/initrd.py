"""Initial file systems for Linux: cpio archives in the `newc` form (kernel: early-userspace/buffer-format)."""

import stat
from pathlib import PurePosixPath

_MAGIC = b"070701"
_END = "TRAILER!!!"


class Initrd:
    """A growing archive; parent folders appear by themselves. All entries belong to root and bear no time."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._folders: set[PurePosixPath] = set()

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file at the absolute `path`."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link at the absolute `path` that leads to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str) -> None:
        """Add the folder `path` and those above it, where they are not there yet."""
        place = PurePosixPath(path.lstrip("/"))
        for parent in (*reversed(place.parents), place):
            if parent.name and parent not in self._folders:
                self._folders.add(parent)
                self._entries.append(_entry(len(self._entries) + 1, str(parent), stat.S_IFDIR | 0o755, b""))

    def to_bytes(self) -> bytes:
        """Return the archive, as the kernel takes it."""
        return b"".join((*self._entries, _entry(0, _END, 0, b"")))

    def _add(self, path: str, mode: int, data: bytes) -> None:
        place = PurePosixPath(path.lstrip("/"))
        self.folder(str(place.parent))
        self._entries.append(_entry(len(self._entries) + 1, str(place), mode, data))


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    terminated = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device numbers of the file and of a node (2 + 2), name length, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(terminated), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + terminated) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
