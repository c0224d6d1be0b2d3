"""Trees of files: what a volume, a bind mount or a container's writable layer is made of, whatever it lies on.

*Catalogue order*: a directory comes before what is in it, and the entries of one directory ascend by the bytes of
their names; so the order is that of the tuples of path components. The root of the tree is the empty path.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Protocol

import msgspec

from lab_backup.extent import Extent


class FileKind(StrEnum):
    """What a directory entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"  # another name of a file that came before in catalogue order
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character"
    BLOCK = "block"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One name in a tree, with all that a restore gives back and all that tells whether it has changed.

    `path` is relative, its parts separated by `/`, any bytes but NUL. `target` is what a symbolic link says, or the path
    of the first name of a hard link. `xattrs` hold ACLs and capabilities too. Times in nanoseconds since 1970 (UTC),
    sizes in bytes. A hard link carries the metadata of its first name only there.
    """

    path: bytes
    kind: FileKind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = {}
    ctime_ns: int = 0
    inode: int = 0


class FileContent(Protocol):
    """The content of one regular file, read from front to back."""

    @property
    def record(self) -> FileRecord:
        """The file, as it was when its content was opened."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Return the whole file as data and zero runs (holes), sorted, gapless; its end is the content's real size."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`, which never goes back; return the bytes read, fewer only where the file ends."""
        ...


class FileTree(Protocol):
    """A tree of files to back up."""

    def records(self) -> Iterator[FileRecord]:
        """Return all names in catalogue order, the root first. What vanishes meanwhile is left out."""
        ...

    def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
        """Return the contents of regular files, in the given order, which is catalogue order.

        Each is valid until the next one is asked for. A file that vanished or is no regular file any more is left out.
        """
        ...

    @property
    def warnings(self) -> list[str]:
        """What the user should know, such as files that could not be read; grows while the tree is read."""
        ...
