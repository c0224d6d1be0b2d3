"""The list of a stream: found again at any place, changed by a change only around it, and refused when it lies."""

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import MAX_RAW
from lab_backup.repository.stream_tree import (
    CUT_ONE_IN,
    FAN_OUT,
    MAX_LEVELS,
    MIN_FAN_OUT,
    Link,
    StreamBuilder,
    StreamReader,
    StreamRef,
    check_empty,
    decode_node,
    encode_node,
)
from lab_backup.repository.tree import MAX_NODE


class Nodes(dict[bytes, bytes]):
    """Stored nodes by their ids."""

    def put(self, node: bytes) -> bytes:
        """Store a node."""
        assert len(node) <= MAX_NODE
        identity = hashlib.sha256(node).digest()
        self[identity] = node
        return identity


def link(number: int, length: int = 10, *, weight: int = 0) -> Link:
    """Return a piece of a chunk of its own."""
    return Link(hashlib.sha256(b"%d" % number).digest(), number % 7, length, weight)


def built(links: list[Link], nodes: Nodes) -> StreamRef:
    """Return the stream of these pieces."""
    builder = StreamBuilder(nodes.put)
    for piece in links:
        builder.add(piece)
    return builder.finish()


_links = st.lists(st.builds(link, st.integers(0, 500), st.integers(1, 5), weight=st.integers(0, 3)), max_size=400)


@settings(deadline=None)
@given(links=_links, data=st.data())
def test_every_piece_is_found_at_its_place(links: list[Link], data: st.DataObject) -> None:
    """Any range gives just the pieces that touch it, with what lies before them."""
    nodes = Nodes()
    stream = built(links, nodes)
    assert stream.size == sum(piece.length for piece in links)
    assert stream.weight == sum(piece.weight for piece in links)
    reader = StreamReader(stream, nodes.__getitem__)
    start = data.draw(st.integers(0, stream.size))
    stop = data.draw(st.integers(start, stream.size))
    expected, offset, before = [], 0, 0
    for piece in links:
        if offset < stop and offset + piece.length > start and start < stop:
            expected.append((offset, before, piece))
        offset += piece.length
        before += piece.weight
    assert [tuple(place) for place in reader.pieces(start, stop)] == expected
    assert [place.link for place in reader.pieces()] == links


@pytest.mark.parametrize("count", [0, 1, MIN_FAN_OUT, FAN_OUT, FAN_OUT + 1, 5000])
def test_how_deep_a_tree_is(count: int) -> None:
    """A tree has as few levels as its nodes allow, and a stream of nothing has no node."""
    nodes = Nodes()
    stream = built([link(number) for number in range(count)], nodes)
    if not count:
        assert stream == StreamRef(0, 0, None)
        assert nodes == {}
        return
    assert stream.root is not None
    level, links = decode_node(nodes[stream.root], None, stream.size, 0, MAX_RAW)
    assert MIN_FAN_OUT**level <= count
    assert len(links) > 1 or level == 0
    assert MIN_FAN_OUT ** (MAX_LEVELS - 1) > 2**40


def test_identical_pieces_do_not_make_it_deep() -> None:
    """A stream of one chunk over and over, whose id ends every node early, is no deeper than the least fan-out makes it."""
    nodes = Nodes()
    stream = built([Link(bytes([CUT_ONE_IN]) * 32, 0, 1)] * 10_000, nodes)
    assert stream.root is not None
    assert decode_node(nodes[stream.root], None, 10_000, 0, MAX_RAW)[0] <= 4
    assert len(nodes) < 10


@pytest.mark.parametrize("place", [0, 3000, 9999])
@pytest.mark.parametrize("gone", [0, 1])
def test_an_insertion_changes_the_nodes_around_it(place: int, gone: int) -> None:
    """One piece more, or another one, in ten thousand: a handful of nodes is new, wherever it is."""
    links = [link(number) for number in range(10_000)]
    nodes = Nodes()
    built(links, nodes)
    before = set(nodes)
    built([*links[:place], link(77_777), *links[place + gone :]], nodes)
    assert 0 < len(set(nodes) - before) <= 8


def _node(level: int, links: list[Link], form: int = 2, count: int | None = None) -> bytes:
    whole = encode_node(level, links)
    return struct.pack("<BBH", form, level, len(links) if count is None else count) + whole[4:]


GOOD = [link(1), link(2, 20)]


@pytest.mark.parametrize(
    "node",
    [
        b"",
        b"\2\0",
        _node(0, GOOD, form=1),
        _node(1, [piece._replace(skip=0) for piece in GOOD]),
        _node(0, GOOD, count=1),
        _node(0, GOOD, count=3),
        _node(0, []),
        _node(0, [link(1), link(2, 19)]),
        _node(0, [link(1, 30), link(2, 0)]),
        _node(0, [link(1), link(2, 20, weight=1)]),
        _node(0, [*GOOD, Link(bytes(32), 0, 2**64 - 1), Link(bytes(32), 0, 1)]),
        _node(0, [link(1)._replace(skip=MAX_RAW), link(2, 20)]),
        _node(0, GOOD) + b"x",
    ],
)
def test_a_node_that_lies_is_refused(node: bytes) -> None:
    """Another form, level, number of links, sum, a piece of nothing or outside of any chunk: all of it is damage."""
    assert decode_node(_node(0, GOOD), 0, 30, 0, 20) == (0, GOOD)
    with pytest.raises(DamagedError):
        decode_node(node, 0, 30, 0, 20)


def test_limits_of_a_node() -> None:
    """No piece is longer than the entry allows, no inner link skips, no node lies deeper than a tree can be, none has more links than fit."""
    with pytest.raises(DamagedError):
        decode_node(_node(0, GOOD), 0, 30, 0, 19)
    with pytest.raises(DamagedError):
        decode_node(_node(1, GOOD), 1, 30, 0, 20)
    with pytest.raises(DamagedError):
        decode_node(_node(MAX_LEVELS, [piece._replace(skip=0) for piece in GOOD]), None, 30, 0, 20)
    with pytest.raises(DamagedError):
        decode_node(_node(0, [link(number, 1) for number in range(FAN_OUT + 1)]), 0, FAN_OUT + 1, 0, 20)
    with pytest.raises(DamagedError):
        check_empty(StreamRef(1, 0, None))
    with pytest.raises(DamagedError):
        check_empty(StreamRef(0, 0, bytes(32)))


def test_a_node_that_is_its_own_child() -> None:
    """Whatever ids promise, levels fall from node to node: a forged circle ends at once."""
    circle = _node(1, [Link(bytes(32), 0, 5)])
    reader = StreamReader(StreamRef(5, 0, bytes(32)), lambda _: circle)
    with pytest.raises(DamagedError):
        list(reader.pieces())
