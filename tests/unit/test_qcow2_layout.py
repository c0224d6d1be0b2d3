"""The qcow2 layout as arithmetic: whatever the map, every part has its own place and the file adds up."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.extent import Extent
from lab_backup.qcow2.layout import CLUSTER, MAX_SIZE, GuestRun, Layout, LayoutError
from lab_backup.units import GiB, KiB, TiB


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Extent]]:
    """Return a size and sorted data runs of some chunk size, scattered over up to three L2 regions."""
    size = draw(st.integers(0, 3 * 512 * 1024 * KiB))
    chunk = draw(st.sampled_from([4 * KiB, 64 * KiB, 128 * KiB, 1024 * KiB]))
    starts = sorted(draw(st.sets(st.integers(0, max(size - 1, 0) // chunk), max_size=30))) if size else []
    return size, [Extent(start * chunk, min(chunk, size - start * chunk)) for start in starts]


def whole(layout: Layout, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes | GuestRun]]:
    """Return the stream's parts with their places in the file."""
    at = start
    for part in layout.stream(start, end):
        yield at, part
        at += len(part) if isinstance(part, bytes) else part.length


@given(disks())
def test_the_stream_is_gapless_and_agrees_with_the_places(disk: tuple[int, list[Extent]]) -> None:
    """What the stream calls a run of the disk is exactly where `host_offset` puts it, and the parts add up to the file."""
    layout = Layout(*disk)
    at = 0
    for at, part in whole(layout):
        if isinstance(part, GuestRun):
            assert at >= layout.data_offset
            assert layout.host_offset(part.offset, part.length) == at
    parts = list(layout.stream())
    length = sum(len(part) if isinstance(part, bytes) else part.length for part in parts)
    assert (
        length
        == layout.file_size
        == layout.data_offset + sum(part.length for part in parts if isinstance(part, GuestRun))
    )


@given(disks())
def test_every_data_run_has_one_place(disk: tuple[int, list[Extent]]) -> None:
    """Each run of the map is one run of the file, inside its data part, and no two different clusters share a place."""
    size, data = disk
    layout = Layout(size, iter(data))
    places = {}
    for extent in data:
        at = layout.host_offset(*extent[:2])
        assert layout.data_offset <= at
        assert at + extent.length <= layout.file_size
        assert at % CLUSTER == extent.offset % CLUSTER
        places[extent.offset // CLUSTER] = at // CLUSTER
    assert len(set(places.values())) == len(places)


@given(disks(), st.data())
def test_any_part_of_the_stream_is_a_part_of_the_whole(disk: tuple[int, list[Extent]], data: st.DataObject) -> None:
    """A stream from any byte to any byte is what the whole stream has there, so ranged downloads fit together."""
    layout = Layout(*disk)
    start = data.draw(st.integers(0, layout.file_size))
    end = data.draw(st.integers(start, layout.file_size))
    expected: list[bytes | GuestRun] = []
    for at, part in whole(layout):
        length = len(part) if isinstance(part, bytes) else part.length
        low, high = max(start - at, 0), min(end - at, length)
        if low < high:
            expected.append(part[low:high] if isinstance(part, bytes) else GuestRun(part.offset + low, high - low))
    assert [part for part in layout.stream(start, end) if part] == expected


def test_the_header_says_what_the_image_is() -> None:
    """The fixed fields are those of a version 3 image without backing file, snapshots or incompatible features."""
    header = next(iter(Layout(GiB, [Extent(0, CLUSTER)]).stream()))
    assert isinstance(header, bytes)
    assert struct.unpack_from(">4sIQIIQI", header) == (b"QFI\xfb", 3, 0, 0, 16, GiB, 0)
    assert struct.unpack_from(">QQQII", header, 72) == (0, 0, 0, 4, 104)


def test_odd_sizes_are_rounded_up_to_a_sector() -> None:
    """A disk of 1,000 bytes is one of 1,024 to the guest, while its data stays where it was."""
    layout = Layout(1000, [Extent(0, 1000)])
    assert (layout.disk_size, layout.virtual_size) == (1000, 1024)
    assert layout.file_size == layout.data_offset + CLUSTER


def test_a_thin_disk_of_ten_terabytes_costs_its_data_only() -> None:
    """Three clusters far apart on 10 TiB make a file of under a mebibyte."""
    layout = Layout(10 * TiB, [Extent(0, CLUSTER), Extent(5 * TiB, CLUSTER), Extent(10 * TiB - CLUSTER, CLUSTER)])
    assert layout.file_size < 1024 * KiB
    assert layout.host_offset(10 * TiB - 1, 1) == layout.file_size - 1


def test_a_full_disk_of_ten_terabytes_is_laid_out_from_one_run() -> None:
    """A run over 10 TiB is placed without a word per cluster, and its last byte is the file's last."""
    layout = Layout(10 * TiB, [Extent(0, 10 * TiB)])
    assert layout.file_size == layout.data_offset + 10 * TiB
    assert layout.host_offset(10 * TiB - 1, 1) == layout.file_size - 1


@pytest.mark.parametrize("offset", [CLUSTER, CLUSTER - 1, 7 * GiB])
def test_a_place_where_the_map_has_no_data_is_refused(offset: int) -> None:
    """Bytes outside the map's data have no place: a restore that disagrees with its map stops."""
    with pytest.raises(LayoutError, match="no data at byte"):
        Layout(8 * GiB, [Extent(0, CLUSTER), Extent(2 * CLUSTER, CLUSTER)]).host_offset(offset, 2)


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([Extent(CLUSTER, CLUSTER), Extent(0, CLUSTER)], id="not sorted"),
        pytest.param([Extent(0, 2 * CLUSTER), Extent(CLUSTER, CLUSTER)], id="overlapping"),
        pytest.param([Extent(GiB - CLUSTER, CLUSTER + 1)], id="past the end"),
        pytest.param([Extent(0, -1)], id="negative"),
    ],
)
def test_a_map_that_lies_is_refused(extents: list[Extent]) -> None:
    """A forged map is an error before anything is written."""
    with pytest.raises(LayoutError, match="map of the disk is wrong"):
        Layout(GiB, extents)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
def test_sizes_that_no_qcow2_has_are_refused(size: int) -> None:
    """A size that the format cannot express is an error with the way out."""
    with pytest.raises(LayoutError, match="cannot have"):
        Layout(size, [])
