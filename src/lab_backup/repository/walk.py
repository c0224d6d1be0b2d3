"""Walks over everything that backups refer to, each tree node once however many backups share it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lab_backup.repository import stream_tree
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.reader import Reader
from lab_backup.repository.stream_tree import Link, StreamRef
from lab_backup.repository.tree import FAN_OUT, TreeRef, check_end, decode_node

OnDamage = Callable[[bytes, int, int, DamagedError], None] | None
"""Told of a node that cannot be read: id, level, offset, error."""


class Found(NamedTuple):
    """A blob that is referred to. `level` is None for a chunk. It stands for `length` bytes from `offset` of the disk or stream.

    A chunk of a disk is as long as that; of a stream's, `skip` and `length` tell a part.
    """

    id: bytes
    level: int | None
    offset: int
    length: int
    skip: int | None = None

    @property
    def needs(self) -> int:
        """How many bytes a chunk must have, at least where it is a stream's."""
        return self.length + (self.skip or 0)

    def fits(self, raw: int) -> bool:
        """Whether a chunk of `raw` bytes can be what is referred to."""
        return raw == self.needs if self.skip is None else raw >= self.needs


class Walk:
    """A walk over one or many trees."""

    def __init__(
        self,
        reader: Reader,
        *,
        seen: Callable[[bytes], bool] | None = None,
        every: bool = False,
    ) -> None:
        """Read nodes by `reader`. `seen(id)` says whether a blob was met before and remembers it; by default a set in memory.

        With `every`, blobs are yielded at each place where they are used.
        """
        self._reader = reader
        known: set[bytes] = set()

        def remember(identity: bytes) -> bool:
            if identity in known:
                return True
            known.add(identity)
            return False

        self._seen = (lambda _: False) if every else seen or remember

    def blobs(self, tree: TreeRef | StreamRef) -> Iterator[Found]:
        """Yield every node and chunk of a disk or stream that was not met before.

        What lies at the end of a disk, so a node on each level and a chunk, is yielded although it was met before, and so is a stream's root. A node comes before what is below it. Raises DamagedError at a node that cannot be read.
        """
        yield from self.survey(tree, on_damage=None)

    def survey(self, tree: TreeRef | StreamRef, *, on_damage: OnDamage) -> Iterator[Found]:
        """Yield what `blobs` yields; a node that cannot be read is told to `on_damage` and passed over."""
        if tree.root is None:
            return
        if isinstance(tree, TreeRef):
            yield from self._node(tree, tree.root, tree.levels - 1, 0, on_damage)
        else:
            yield from self._stream(tree, Link(tree.root, 0, tree.size, tree.weight), None, 0, on_damage)

    def _node(self, tree: TreeRef, identity: bytes, level: int, first: int, on_damage: OnDamage) -> Iterator[Found]:
        offset = first * tree.chunk_size
        span = FAN_OUT**level
        reach = FAN_OUT * span * tree.chunk_size
        # Where a disk ends, a list that is sound for one disk may be wrong for another: there it is looked at for each of them.
        at_end = offset + reach > tree.size
        if self._seen(identity) and not at_end:
            return
        yield Found(identity, level, offset, min(reach, tree.size - offset))
        try:
            children = decode_node(self._reader.node(identity), level)
            check_end(tree, level, first, children)
        except DamagedError as error:
            if on_damage is None:
                raise
            on_damage(identity, level, offset, error)
            return
        for slot, child in enumerate(children):
            if child is None:
                continue
            if level == 0:
                begin = (first + slot) * tree.chunk_size
                if not self._seen(child) or begin + tree.chunk_size > tree.size:
                    yield Found(child, None, begin, min(tree.chunk_size, tree.size - begin))
            else:
                yield from self._node(tree, child, level - 1, first + slot * span, on_damage)

    def _stream(
        self, stream: StreamRef, link: Link, level: int | None, offset: int, on_damage: OnDamage
    ) -> Iterator[Found]:
        # The root is looked at for each stream: its length stands in a manifest, not in a node whose id vouches for it.
        if self._seen(link.id) and level is not None:
            return
        yield Found(link.id, stream_tree.MAX_LEVELS if level is None else level, offset, link.length)
        try:
            found, links = stream_tree.decode_node(
                self._reader.node(link.id), level, link.length, link.weight, stream.max_piece
            )
        except DamagedError as error:
            if on_damage is None:
                raise
            on_damage(link.id, stream_tree.MAX_LEVELS if level is None else level, offset, error)
            return
        for child in links:
            if found > 0:
                yield from self._stream(stream, child, found - 1, offset, on_damage)
            elif not self._seen(child.id):
                yield Found(child.id, None, offset, child.length, child.skip)
            offset += child.length
