"""Whether two trees of files are alike, in all that a restore gives back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from lab_backup.filetree import FileContent, FileKind, FileTree
from lab_backup.path_text import shown
from lab_backup.units import KiB

_BLOCK = 64 * KiB
_ZEROES = bytes(_BLOCK)

METADATA = frozenset({"kind", "mode", "uid", "gid", "mtime_ns", "size", "target", "major", "minor", "xattrs"})
"""The fields of a record that a restore gives back; change time and inode number are the file system's."""

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Difference:
    """`path` differs in `what`: a field of its record, `content`, or `presence`, where a tree that lacks the name has None."""

    path: bytes
    what: str
    first: object
    second: object

    def __str__(self) -> str:
        if self.what == "presence":
            return f"{shown(self.path)}: only in the {'first' if self.second is None else 'second'} tree"
        return f"{shown(self.path)}: {self.what}"


def differences(first: FileTree, second: FileTree, *, fields: frozenset[str] = METADATA) -> Iterator[Difference]:
    """Return how the trees differ: in names and `fields`, then in contents, each in catalogue order.

    Zeroes equal a hole. A content that a tree cannot give is in its warnings. Each tree is gone through twice.
    """
    records = [((record.path, record) for record in tree.records()) for tree in (first, second)]
    for path, one, two in _side_by_side(*records):
        if one is None or two is None:
            yield Difference(path, "presence", one and one.kind.value, two and two.kind.value)
            continue
        for field in sorted(fields):
            if getattr(one, field) != getattr(two, field):
                yield Difference(path, field, getattr(one, field), getattr(two, field))
    for path, one_hash, two_hash in _side_by_side(_digests(first), _digests(second)):
        if one_hash and two_hash and one_hash != two_hash:
            yield Difference(path, "content", one_hash, two_hash)


def _side_by_side(
    first: Iterable[tuple[bytes, Entry]], second: Iterable[tuple[bytes, Entry]]
) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """Merge two streams in catalogue order."""
    ones, twos = iter(first), iter(second)
    one, two = next(ones, None), next(twos, None)
    while one is not None or two is not None:
        if one is not None and (two is None or _order(one[0]) < _order(two[0])):
            yield one[0], one[1], None
            one = next(ones, None)
        elif two is not None and (one is None or _order(two[0]) < _order(one[0])):
            yield two[0], None, two[1]
            two = next(twos, None)
        elif one is not None and two is not None:
            yield one[0], one[1], two[1]
            one, two = next(ones, None), next(twos, None)


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


def _digests(tree: FileTree) -> Iterator[tuple[bytes, str]]:
    files = (record for record in tree.records() if record.kind is FileKind.FILE)
    for content in tree.contents(files):
        yield content.record.path, digest(content)


def digest(content: FileContent) -> str:
    """Return a hash of the whole content that is the same wherever its holes are; holes are not read."""
    hasher, buffer, end, at = blake3(), bytearray(_BLOCK), 0, 0
    for extent in content.extents():
        end = extent.end
        if extent.zero:
            continue
        at = max(at, extent.offset // _BLOCK * _BLOCK)
        while at < extent.end:
            with memoryview(buffer) as view:
                count = content.read_into(at, view)
            block = bytes(buffer[:count])
            if block != _ZEROES[:count]:
                data = block.rstrip(b"\0")
                hasher.update(at.to_bytes(8, "little") + len(data).to_bytes(4, "little") + data)
            at += _BLOCK
    hasher.update(end.to_bytes(8, "little"))
    return hasher.hexdigest()
