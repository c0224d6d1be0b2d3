"""Walks over everything that backups refer to, each tree node once however many backups share it."""

from collections.abc import Callable, Iterator

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.reader import Reader
from lab_backup.repository.tree import FAN_OUT, TreeRef, check_end, decode_node


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

    def blobs(self, tree: TreeRef) -> Iterator[tuple[bytes, int | None, int]]:
        """Yield (id, level, offset) of every node and chunk of a tree that was not met before; level None is a chunk.

        What lies at the end of the disk, so a node on each level and a chunk, is yielded although it was met before. `offset` is where on the disk it begins. A node comes before what is below it. Raises DamagedError at a node that cannot be read.
        """
        yield from self.survey(tree, on_damage=None)

    def survey(
        self, tree: TreeRef, *, on_damage: Callable[[bytes, int, int, DamagedError], None] | None
    ) -> Iterator[tuple[bytes, int | None, int]]:
        """Yield what `blobs` yields; a node that cannot be read is told to `on_damage` (id, level, offset, error) and passed over."""
        if tree.root is not None:
            yield from self._node(tree, tree.root, tree.levels - 1, 0, on_damage)

    def _node(
        self,
        tree: TreeRef,
        identity: bytes,
        level: int,
        first: int,
        on_damage: Callable[[bytes, int, int, DamagedError], None] | None,
    ) -> Iterator[tuple[bytes, int | None, int]]:
        offset = first * tree.chunk_size
        span = FAN_OUT**level
        # Where a disk ends, a list that is sound for one disk may be wrong for another: there it is looked at for each of them.
        at_end = offset + FAN_OUT * span * tree.chunk_size > tree.size
        if self._seen(identity) and not at_end:
            return
        yield identity, level, offset
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
                    yield child, None, begin
            else:
                yield from self._node(tree, child, level - 1, first + slot * span, on_damage)
