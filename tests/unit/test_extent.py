"""Extent arithmetic against a model that looks at every byte."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lab_backup.extent import Extent, intersect, merge, total, union

Model = dict[int, bool]  # byte → whether it is zero; bytes in no extent are absent


@st.composite
def streams(draw: st.DrawFn, *, empty_runs: bool = True) -> list[Extent]:
    """Draw a sorted stream without overlaps: runs may touch, have equal or different kinds, or be empty."""
    extents: list[Extent] = []
    at = 0
    for gap, length, zero in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0 if empty_runs else 1, 6), st.booleans()), max_size=12)
    ):
        at += gap
        extents.append(Extent(at, length, zero))
        at += length
    return extents


def model(extents: Iterable[Extent]) -> Model:
    """Return what the stream says of each byte, and fail where it says it twice."""
    result: Model = {}
    for extent in extents:
        for byte in range(extent.offset, extent.end):
            assert byte not in result, "overlap"
            result[byte] = extent.zero
    return result


def check_order(extents: list[Extent]) -> None:
    """Fail where the stream is not sorted, overlaps, or holds an empty run."""
    assert all(extent.length > 0 for extent in extents)
    assert all(before.end <= after.offset for before, after in pairwise(extents))


def check_merged(extents: list[Extent]) -> None:
    """Fail where two neighbours should be one."""
    check_order(extents)
    assert not any(before.end == after.offset and before.zero == after.zero for before, after in pairwise(extents))


@given(streams())
def test_merge_joins_and_changes_no_byte(stream: list[Extent]) -> None:
    """Merging says the same of every byte, in the fewest runs."""
    result = list(merge(stream))
    check_merged(result)
    assert model(result) == model(stream)


@given(streams())
def test_merge_twice_is_merge(stream: list[Extent]) -> None:
    """Merging a merged stream changes nothing."""
    assert list(merge(merge(stream))) == list(merge(stream))


@given(streams(), streams())
def test_intersect_covers_exactly_what_is_wanted(wanted: list[Extent], kinds: list[Extent]) -> None:
    """Each wanted byte comes once, with the kind that is known of it, or as data; no other byte comes."""
    result = list(intersect(wanted, kinds))
    check_order(result)
    known = model(kinds)
    assert model(result) == {byte: known.get(byte, False) for byte in model(wanted)}


@given(streams(), streams())
def test_union_is_every_byte_of_both(first: list[Extent], second: list[Extent]) -> None:
    """A byte of either stream comes once; it is zero only if nobody who knows it says data."""
    result = list(union(first, second))
    check_merged(result)
    a, b = model(first), model(second)
    assert model(result) == {byte: a.get(byte, True) and b.get(byte, True) for byte in a.keys() | b.keys()}


@given(streams(), streams())
def test_union_is_symmetric(first: list[Extent], second: list[Extent]) -> None:
    """It does not matter which stream comes first."""
    assert list(union(first, second)) == list(union(second, first))


@given(streams())
def test_total_counts_bytes(stream: list[Extent]) -> None:
    """The totals of data and of zeroes are those of the model, and add up."""
    kinds = list(model(stream).values())
    assert total(stream) == len(kinds)
    assert total(stream, zero=True) == sum(kinds)
    assert total(stream, zero=False) == len(kinds) - sum(kinds)


def test_streams_are_consumed_lazily() -> None:
    """The map of an endless disk costs no memory: the first results come from the first inputs."""

    def endless(offset: int) -> Iterator[Extent]:
        while True:
            yield Extent(offset, 1)
            offset += 2

    assert next(merge(endless(0))) == Extent(0, 1)
    assert next(intersect(endless(0), endless(0))) == Extent(0, 1)
    assert next(union(endless(0), endless(0))) == Extent(0, 1)


def test_dirty_and_trimmed() -> None:
    """A range that is dirty and reads as zero is known to be zero, so a trim in the guest costs no reading."""
    dirty = [Extent(0, 100), Extent(200, 100)]
    allocation = [Extent(0, 50), Extent(50, 200, zero=True), Extent(250, 50)]
    assert list(intersect(dirty, allocation)) == [
        Extent(0, 50),
        Extent(50, 50, zero=True),
        Extent(200, 50, zero=True),
        Extent(250, 50),
    ]
