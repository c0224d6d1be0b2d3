"""Chunk trees: the same list of chunks in, the same out, whatever was laid over whatever; and lying nodes are refused."""

from collections.abc import Mapping

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import ID
from lab_backup.repository.tree import (
    FAN_OUT,
    MAX_NODE,
    Child,
    TreeBuilder,
    TreeReader,
    TreeRef,
    check_end,
    decode_node,
    encode_node,
    levels,
    node_id,
)
from lab_backup.units import KiB

CHUNK = 16 * KiB
Model = list[Child]
"""The naive tree: what each chunk of a disk is."""


class Nodes:
    """A store of nodes that counts."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.written: list[bytes] = []

    def store(self, node: bytes) -> bytes:
        """Keep a node, return its id."""
        assert len(node) <= MAX_NODE
        identity = node_id(bytes(32), node)
        self.stored[identity] = node
        self.written.append(node)
        return identity

    def reader(self, tree: TreeRef) -> TreeReader:
        """Return a look into a tree."""
        return TreeReader(tree, self.stored.__getitem__)

    def write(self, chunks: int, leaves: Mapping[int, list[Child]], parent: TreeRef | None = None) -> TreeRef:
        """Build a tree from leaves."""
        tree = TreeRef(chunks * CHUNK, CHUNK, None)
        builder = TreeBuilder(tree, self.reader(parent) if parent else None, self.store)
        for number, children in sorted(leaves.items()):
            empty = all(child is None for child in children)
            builder.add(number, None if empty else self.store(encode_node(0, children)))
        return tree._replace(root=builder.finish())

    def chunks_of(self, tree: TreeRef) -> Model:
        """Return what each chunk is, read leaf by leaf."""
        found: Model = [None] * (-(-tree.chunks // FAN_OUT) * FAN_OUT)
        for number, identity in self.reader(tree).leaves():
            found[number * FAN_OUT : (number + 1) * FAN_OUT] = decode_node(self.stored[identity], 0)
        assert all(child is None for child in found[tree.chunks :])
        return found[: tree.chunks]


def chunk(number: int) -> bytes:
    """Return a made-up chunk id."""
    return blake3(str(number).encode()).digest()


def leaf_of(model: Model, number: int) -> list[Child]:
    """Return the children of a leaf, from the model."""
    part = model[number * FAN_OUT : (number + 1) * FAN_OUT]
    return part + [None] * (FAN_OUT - len(part))


# Around every border between two numbers of levels, and some in between.
SIZES = [1, 2, 63, 64, 65, 100, 64**2 - 1, 64**2, 64**2 + 1, 3 * 64**2 + 7, 64**3, 64**3 + 1]


@st.composite
def edits(draw: st.DrawFn, chunks: int) -> dict[int, Child]:
    """Return changes: chunk number to id, or to None where it becomes zero."""
    numbers = st.integers(0, chunks - 1)
    starts = draw(st.lists(st.tuples(numbers, st.integers(1, 200), st.booleans()), max_size=6))
    changes: dict[int, Child] = {}
    for start, length, zero in starts:
        for at in range(start, min(start + length, chunks)):
            changes[at] = None if zero else chunk(draw(st.integers(0, 3)) * 1000 + at)
    return changes


@given(data=st.data(), chunks=st.sampled_from(SIZES))
def test_against_the_naive_list(data: st.DataObject, chunks: int) -> None:
    """A full tree, and increments over it, list exactly the chunks that a plain list would; equal lists have equal roots."""
    nodes = Nodes()
    model: Model = [None] * chunks
    parent: TreeRef | None = None
    for _ in range(3):
        changes = data.draw(edits(chunks))
        for at, identity in changes.items():
            model[at] = identity
        touched = {at // FAN_OUT for at in changes}
        parent = nodes.write(chunks, {number: leaf_of(model, number) for number in touched}, parent)
        assert nodes.chunks_of(parent) == model
        everything = {number: leaf_of(model, number) for number in range(-(-chunks // FAN_OUT))}
        assert nodes.write(chunks, everything).root == parent.root
    assert parent is not None
    reader = nodes.reader(parent)
    for at in data.draw(st.lists(st.integers(0, chunks - 1), max_size=5)):
        assert reader.children(0, at // FAN_OUT)[at % FAN_OUT] == model[at]


@given(data=st.data(), chunks=st.sampled_from(SIZES))
def test_leaves_in_a_range(data: st.DataObject, chunks: int) -> None:
    """Asking for some leaves gives those of them that are not all zero, ascending."""
    nodes = Nodes()
    model: Model = [None] * chunks
    for at, identity in data.draw(edits(chunks)).items():
        model[at] = identity
    count = -(-chunks // FAN_OUT)
    tree = nodes.write(chunks, {number: leaf_of(model, number) for number in range(count)})
    start, stop = sorted(data.draw(st.tuples(st.integers(0, count + 1), st.integers(0, count + 1))))
    wanted = [n for n in range(start, min(stop, count)) if any(child is not None for child in leaf_of(model, n))]
    assert [number for number, _ in nodes.reader(tree).leaves(start, stop)] == wanted


def test_an_increment_writes_only_the_way_to_the_root() -> None:
    """One changed chunk on a tree of three levels writes three nodes."""
    nodes = Nodes()
    chunks = 3 * FAN_OUT**2
    model: Model = [chunk(at) for at in range(chunks)]
    parent = nodes.write(chunks, {number: leaf_of(model, number) for number in range(chunks // FAN_OUT)})
    nodes.written.clear()
    model[5000] = chunk(-1)
    after = nodes.write(chunks, {5000 // FAN_OUT: leaf_of(model, 5000 // FAN_OUT)}, parent)
    assert len(nodes.written) == 3
    assert nodes.chunks_of(after) == model


def test_all_zero() -> None:
    """A disk of zeroes has no root and no nodes, also after everything on it became zero."""
    nodes = Nodes()
    chunks = FAN_OUT**2 + 3
    full = nodes.write(chunks, {0: [chunk(0)] + [None] * 63, 64: [chunk(1)] + [None] * 63})
    assert full.root is not None
    empty = nodes.write(chunks, {0: [None] * 64, 64: [None] * 64}, full)
    assert empty.root is None
    assert list(nodes.reader(empty).leaves()) == []
    assert nodes.reader(empty).children(0, 64) == [None] * FAN_OUT


@pytest.mark.parametrize(
    ("chunks", "expected"), [(0, 1), (1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (64**6, 6), (64**6 + 1, 7)]
)
def test_levels(chunks: int, expected: int) -> None:
    """There are no more levels than the chunks need."""
    assert levels(chunks) == expected


@given(
    children=st.lists(st.one_of(st.none(), st.binary(min_size=ID, max_size=ID)), max_size=FAN_OUT),
    level=st.integers(0, 9),
)
def test_node_round_trip(children: list[Child], level: int) -> None:
    """A node decodes to its children, and to nothing on another level."""
    data = encode_node(level, children)
    assert decode_node(data, level) == children + [None] * (FAN_OUT - len(children))
    with pytest.raises(DamagedError):
        decode_node(data, level + 1)


@given(data=st.binary(max_size=120), level=st.integers(0, 3))
def test_nonsense_is_no_node(data: bytes, level: int) -> None:
    """Whatever bytes are decoded, it ends in 64 children or in DamagedError."""
    for candidate in (data, bytes([1, level]) + data):
        try:
            children = decode_node(candidate, level)
        except DamagedError:
            continue
        assert len(children) == FAN_OUT
        assert encode_node(level, children) == candidate


def test_node_of_wrong_length() -> None:
    """A node longer or shorter than its mask says is refused."""
    node = encode_node(0, [chunk(0), None, chunk(1)])
    for bad in (node[:-1], node + b"x", node + chunk(2), node[:5], b""):
        with pytest.raises(DamagedError):
            decode_node(bad, 0)


def test_loop() -> None:
    """A node that refers to itself ends at the first step down, since its level is then wrong."""
    top = encode_node(1, [chunk(0)])
    tree = TreeRef(65 * CHUNK, CHUNK, chunk(0))
    reader = TreeReader(tree, lambda _: top)
    with pytest.raises(DamagedError):
        reader.children(0, 0)


@pytest.mark.parametrize("chunks", [1, 63, 65, FAN_OUT**2 - 1, FAN_OUT**2 + 1])
def test_children_beyond_the_end(chunks: int) -> None:
    """A node may list the last chunk of its disk, and none behind it, on any level."""
    tree = TreeRef(chunks * CHUNK - 1, CHUNK, None)
    for level in range(tree.levels):
        span = FAN_OUT**level
        first = (chunks - 1) // (FAN_OUT * span) * FAN_OUT * span
        last = (chunks - 1 - first) // span
        good: list[Child] = [chunk(at) for at in range(last + 1)]
        check_end(tree, level, first, good + [None] * (FAN_OUT - len(good)))
        if last + 1 < FAN_OUT:
            with pytest.raises(DamagedError):
                check_end(tree, level, first, [*good, chunk(-1)])
        with pytest.raises(DamagedError):
            check_end(tree, level, first + FAN_OUT * span, [chunk(0)])


def test_inner_node_longer_than_its_disk() -> None:
    """The walk over the leaves refuses a root that lists leaves behind the end."""
    nodes = Nodes()
    leaf = nodes.store(encode_node(0, [chunk(0)]))
    root = nodes.store(encode_node(1, [leaf] * 3))
    with pytest.raises(DamagedError):
        list(nodes.reader(TreeRef(2 * FAN_OUT * CHUNK, CHUNK, root)).leaves())
    assert len(list(nodes.reader(TreeRef(3 * FAN_OUT * CHUNK, CHUNK, root)).leaves())) == 3
