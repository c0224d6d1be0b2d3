"""What tells one stored disk from another: found by comparing their trees from the top, so that it costs what differs."""

from collections.abc import Iterator
from typing import NamedTuple

from lab_backup.repository.tree import FAN_OUT, Child, TreeReader, check_end


class Difference(NamedTuple):
    """A part of a tree that another one does not have at this place, and the bytes of the disk that it covers.

    `id` is None where the range reads as zeroes; `level` is None for a chunk. A node comes before what differs below it.
    """

    id: Child
    level: int | None
    offset: int
    length: int

    @property
    def final(self) -> bool:
        """Whether this is all that is said of the range: a chunk, or zeroes."""
        return self.level is None or self.id is None


def differences(new: TreeReader, old: TreeReader | None) -> Iterator[Difference]:
    """Yield what `new` has and `old` has not, ascending; all of it where `old` is None or another size or chunk size.

    Raises DamagedError where a tree cannot be read or contradicts itself.
    """
    if old is not None and (old.tree.size, old.tree.chunk_size) != (new.tree.size, new.tree.chunk_size):
        old = None
    if new.tree.size:
        yield from _below(new, old, new.tree.levels - 1, 0)


def _below(new: TreeReader, old: TreeReader | None, level: int, index: int) -> Iterator[Difference]:
    identity = new.node(level, index)
    if (old is not None and identity == old.node(level, index)) or (old is None and identity is None):
        return
    yield _difference(new, identity, level, index, FAN_OUT ** (level + 1))
    if identity is None:
        return
    children = new.children(level, index)
    check_end(new.tree, level, index * FAN_OUT ** (level + 1), children)
    others: list[Child] = [None] * FAN_OUT if old is None else old.children(level, index)
    for slot, (child, other) in enumerate(zip(children, others, strict=True)):
        if child == other:
            continue
        at = index * FAN_OUT + slot
        if level == 0:
            yield _difference(new, child, None, at, 1)
        else:
            yield from _below(new, old, level - 1, at)


def _difference(new: TreeReader, identity: Child, level: int | None, index: int, chunks: int) -> Difference:
    tree = new.tree
    offset = index * chunks * tree.chunk_size
    return Difference(identity, level, offset, min(chunks * tree.chunk_size, tree.size - offset))
