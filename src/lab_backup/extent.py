"""Runs of bytes on a disk, and the arithmetic on sorted streams of them.

Everything works on iterators in ascending order without overlaps, so a heavily fragmented disk of many terabytes needs
no memory for its map.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """`length` bytes from `offset`; `zero` says that they are known to read as zeroes and need not be read."""

    offset: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        """The first byte after the run."""
        return self.offset + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of the same kind. Input sorted and without overlaps; empty runs vanish."""
    held: Extent | None = None
    for extent in extents:
        if extent.length == 0:
            continue
        if held is not None and held.end == extent.offset and held.zero == extent.zero:
            held = Extent(held.offset, held.length + extent.length, held.zero)
            continue
        if held is not None:
            yield held
        held = extent
    if held is not None:
        yield held


def intersect(wanted: Iterable[Extent], kinds: Iterable[Extent]) -> Iterator[Extent]:
    """Cut `kinds` down to the ranges of `wanted`; the result has the zero flag of `kinds`.

    Parts of `wanted` that `kinds` does not cover are yielded as data, since nothing is known about them.
    """
    stream = iter(kinds)
    kind = next(stream, None)
    for want in wanted:
        at = want.offset
        while at < want.end:
            while kind is not None and (kind.end <= at or kind.length == 0):
                kind = next(stream, None)
            if kind is None or kind.offset >= want.end:
                yield Extent(at, want.end - at)
                break
            if kind.offset > at:
                yield Extent(at, kind.offset - at)
                at = kind.offset
            stop = min(kind.end, want.end)
            yield Extent(at, stop - at, kind.zero)
            at = stop


def union(first: Iterable[Extent], second: Iterable[Extent]) -> Iterator[Extent]:
    """Return every byte that lies in either stream; a byte is zero only where each stream that holds it says so.

    Input sorted and without overlaps within each stream; the same holds for the result, which is merged.
    """
    return merge(_overlay(iter(first), iter(second)))


def _overlay(first: Iterator[Extent], second: Iterator[Extent]) -> Iterator[Extent]:
    a, b = next(first, None), next(second, None)
    while a is not None and b is not None:
        if b.offset < a.offset:
            a, b, first, second = b, a, second, first
        if a.offset < b.offset:
            stop = min(a.end, b.offset)
            yield Extent(a.offset, stop - a.offset, a.zero)
            a = _tail(a, stop, first)
            continue
        stop = min(a.end, b.end)
        yield Extent(a.offset, stop - a.offset, a.zero and b.zero)
        a, b = _tail(a, stop, first), _tail(b, stop, second)
    held, rest = (a, first) if a is not None else (b, second)
    if held is not None:
        yield held
        yield from rest


def _tail(extent: Extent, start: int, rest: Iterator[Extent]) -> Extent | None:
    return Extent(start, extent.end - start, extent.zero) if start < extent.end else next(rest, None)


def total(extents: Iterable[Extent], *, zero: bool | None = None) -> int:
    """Return the bytes in `extents`, or only in those whose zero flag equals `zero`."""
    return sum(extent.length for extent in extents if zero is None or extent.zero == zero)
