"""What changed on a disk, from its dirty bitmap and its allocation."""

from collections.abc import Iterator
from typing import Any, Self, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.extent import Extent
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.errors import NbdConnectionError
from lab_backup.nbd.protocol import ALLOCATION
from lab_backup.sources.libvirt import export
from lab_backup.sources.libvirt.errors import LostBackupError
from lab_backup.sources.libvirt.export import WatchedReader, dirty_extents


class Server:
    """An export of blocks of 1 MiB, each with its flags in two contexts; it counts what it is asked."""

    def __init__(self, dirty: list[bool], zero: list[bool]) -> None:
        self.flags = {"dirty": [int(flag) for flag in dirty], ALLOCATION: [3 * int(flag) for flag in zero]}
        self.asked: list[tuple[str, int]] = []

    def connect(self, context: str) -> NbdClient:
        """Return a client that knows one context."""
        return cast("NbdClient", Client(self, context))


class Client:
    """The part of a client that is used for extents."""

    def __init__(self, server: Server, context: str) -> None:
        self.server, self.context = server, context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def status(self, context: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Return the flags block by block."""
        assert context == self.context
        flags = self.server.flags[context]
        stop = len(flags) << 20 if end is None else end
        self.server.asked.append((context, stop - start))
        for at in range(start, stop, 1 << 20):
            yield at, 1 << 20, flags[at >> 20]


blocks = st.integers(1, 80).flatmap(
    lambda count: st.tuples(
        st.lists(st.booleans(), min_size=count, max_size=count), st.lists(st.booleans(), min_size=count, max_size=count)
    )
)


@given(blocks)
def test_changes_are_the_dirty_blocks_and_zeroes_among_them(maps: tuple[list[bool], list[bool]]) -> None:
    """Every dirty block is there once, in order, zero exactly where the allocation says so; no other block is."""
    dirty, zero = maps
    found: dict[int, bool] = {}
    last = 0
    for extent in dirty_extents(Server(dirty, zero).connect, "dirty", lambda: None):
        assert extent.offset >= last
        last = extent.end
        for at in range(extent.offset, extent.end, 1 << 20):
            found[at >> 20] = extent.zero
    assert found == {number: zero[number] for number, flag in enumerate(dirty) if flag}


def test_the_allocation_of_a_disk_is_only_looked_up_near_changes() -> None:
    """On a disk with two distant changes, hardly any allocation is asked for."""
    dirty = [False] * 4096
    dirty[3] = dirty[4090] = True
    server = Server(dirty, [False] * 4096)
    assert list(dirty_extents(server.connect, "dirty", lambda: None)) == [
        Extent(3 << 20, 1 << 20),
        Extent(4090 << 20, 1 << 20),
    ]
    assert sum(length for context, length in server.asked if context == ALLOCATION) == 2 << 20


def test_near_changes_are_looked_up_together() -> None:
    """A thousand changes side by side do not cost a thousand requests."""
    dirty = [number % 2 == 0 for number in range(2000)]
    server = Server(dirty, [False] * 2000)
    assert len(list(dirty_extents(server.connect, "dirty", lambda: None))) == 1000
    assert len([1 for context, _length in server.asked if context == ALLOCATION]) == 2
    assert export.WINDOW_GAP > 1 << 20


class Broken:
    """A reader whose server is gone."""

    size, readers = 1, 1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fail."""
        raise NbdConnectionError(f"gone: {len(buffer)} bytes at {offset}")

    def extents(self) -> Iterator[Extent]:
        """Fail."""
        raise NbdConnectionError("gone")

    def close(self) -> None:
        """Do nothing."""


def test_a_failed_read_is_explained_by_who_knows_more() -> None:
    """The error is what `explain` raises; where it has no explanation, it is the original one."""

    def explain() -> None:
        raise LostBackupError("the guest was shut down")

    signs: list[Any] = []
    reader = WatchedReader(Broken(), lambda: signs.append(1), explain)
    with pytest.raises(LostBackupError, match="shut down"):
        reader.read_into(0, memoryview(bytearray(1)))
    with pytest.raises(LostBackupError, match="shut down"):
        list(reader.extents())
    assert len(signs) == 2
    with pytest.raises(NbdConnectionError):
        WatchedReader(Broken(), lambda: None, lambda: None).read_into(0, memoryview(bytearray(1)))
