"""From extents to whole chunks, against a model that looks at every byte."""

from hypothesis import given
from hypothesis import strategies as st

from lab_backup.extent import Extent
from lab_backup.repository.disk_writer import chunk_runs, leaves
from lab_backup.repository.tree import FAN_OUT

CHUNK = 8  # small, so that every border is met


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Extent]]:
    """Return a disk's size, and sorted extents on it, which may reach beyond its end."""
    size = draw(st.integers(0, 100))
    borders = draw(st.lists(st.integers(0, 110), max_size=12).map(sorted))
    kinds = draw(st.lists(st.sampled_from(["data", "zero", "none"]), min_size=len(borders), max_size=len(borders)))
    extents = [
        Extent(start, end - start, kind == "zero")
        for start, end, kind in zip(borders, borders[1:], kinds, strict=False)
        if kind != "none"
    ]
    return size, extents


@given(disk=disks())
def test_against_every_byte(disk: tuple[int, list[Extent]]) -> None:
    """A chunk is in a run if an extent touches it, and it is zero if zero extents cover all of it."""
    size, extents = disk
    touched: dict[int, bool] = {}
    for chunk in range(-(-size // CHUNK)):
        kinds = [
            next((extent.zero for extent in extents if extent.offset <= at < extent.end), None)
            for at in range(chunk * CHUNK, min((chunk + 1) * CHUNK, size))
        ]
        if any(kind is not None for kind in kinds):
            touched[chunk] = all(kind is True for kind in kinds)
    runs = list(chunk_runs(extents, CHUNK, size))
    assert [at for first, end, _ in runs for at in range(first, end)] == sorted(touched)
    assert {at: zero for first, end, zero in runs for at in range(first, end)} == touched
    assert all(first < end for first, end, _ in runs)


@given(runs=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 20), st.booleans()), max_size=10))
def test_leaves_hold_the_same_chunks(runs: list[tuple[int, int, bool]]) -> None:
    """Cut at leaves, the runs hold the same chunks of the same kinds, each leaf once, in order."""
    at = 0
    cut: list[tuple[int, int, bool]] = []
    for length, gap, zero in runs:
        cut.append((at, at + length, zero))
        at += length + gap
    found = list(leaves(cut))
    assert [leaf.number for leaf in found] == sorted({leaf.number for leaf in found})
    for leaf in found:
        for first, end, _ in leaf.runs:
            assert leaf.number * FAN_OUT <= first < end <= (leaf.number + 1) * FAN_OUT
    assert [(chunk, zero) for leaf in found for first, end, zero in leaf.runs for chunk in range(first, end)] == [
        (chunk, zero) for first, end, zero in cut for chunk in range(first, end)
    ]
    for leaf in found:
        assert all(a[1] < b[0] or a[2] != b[2] for a, b in zip(leaf.runs, leaf.runs[1:], strict=False)), "joined"


def test_large_disk_is_cheap() -> None:
    """One zero run over a petabyte is one run, not one for each chunk."""
    size = 1 << 50
    assert list(chunk_runs([Extent(0, size, zero=True)], 1 << 17, size)) == [(0, size >> 17, True)]
