"""The catalogue of a tree: what goes in comes out, and what no tree could hold is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.filetree import FileKind, FileRecord
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.file_rows import (
    MAX_CHUNK,
    MAX_ROWS,
    MAX_RUNS,
    MIN_CHUNK,
    Position,
    Row,
    data_runs,
    decode_chunk,
    encode_chunk,
    encode_row,
    ends_chunk,
    order,
    row_of,
)
from lab_backup.repository.manifest import MAX_CATALOGUE_CHUNK

ROOT = row_of(FileRecord(path=b"", kind=FileKind.DIRECTORY))


def row(path: bytes, kind: FileKind = FileKind.FILE, runs: tuple[int, ...] = (), **fields: object) -> Row:
    """Return a row."""
    return msgspec.structs.replace(row_of(FileRecord(path=path, kind=kind), runs), **fields)


def folder(path: bytes) -> Row:
    """Return the row of a directory."""
    return row(path, FileKind.DIRECTORY)


def decoded(rows: list[Row], position: Position | None = None) -> list[Row]:
    """Return rows after they were stored and read."""
    chunk = encode_chunk([encode_row(row) for row in rows])
    return decode_chunk(chunk, sum(row.stored for row in rows), position or Position())


_numbers = st.integers(0, 2**32 - 1)
_records = st.builds(
    FileRecord,
    path=st.just(b"name"),
    kind=st.sampled_from([kind for kind in FileKind if kind is not FileKind.HARDLINK]),
    mode=st.integers(0, 0o7777),
    uid=_numbers,
    gid=_numbers,
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
    ctime_ns=st.integers(-(2**63), 2**63 - 1),
    inode=st.integers(0, 2**64 - 1),
    target=st.binary(),
    major=_numbers,
    minor=_numbers,
    xattrs=st.dictionaries(st.binary(min_size=1), st.binary()),
)


@given(record=_records)
def test_every_record_comes_back(record: FileRecord) -> None:
    """Times before 1970, ids and inode numbers up to their limits, attributes of any bytes: a row holds them all."""
    assert decoded([ROOT, row_of(record)])[1].record == record


@given(
    first=st.lists(st.binary(min_size=1, max_size=3).filter(lambda name: not set(name) & {0, 47}), max_size=3),
    second=st.lists(st.binary(min_size=1, max_size=3).filter(lambda name: not set(name) & {0, 47}), max_size=3),
)
def test_the_order_of_paths_is_that_of_their_parts(first: list[bytes], second: list[bytes]) -> None:
    """Keys compare as the lists of names do."""
    assert (order(b"/".join(first)) < order(b"/".join(second))) == (first < second)


FORGED = [
    [row(b"a")],
    [row(b"")],
    [folder(b"a")],
    [ROOT, row(b"/a")],
    [ROOT, row(b"a/")],
    [ROOT, folder(b"a"), row(b"a//b")],
    [ROOT, row(b"..")],
    [ROOT, row(b".")],
    [ROOT, folder(b"a"), row(b"a/../b")],
    [ROOT, folder(b"a"), row(b"a/..")],
    [ROOT, row(b"a\0b")],
    [ROOT, ROOT],
    [ROOT, row(b"a"), row(b"a")],
    [ROOT, row(b"b"), row(b"a")],
    [ROOT, row(b"a"), row(b"a/b")],
    [ROOT, row(b"a/b")],
    [ROOT, folder(b"a"), row(b"b"), row(b"a/b")],
    [ROOT, folder(b"a"), row(b"b/c")],
    [ROOT, folder(b"a"), folder(b"a/b"), row(b"a/c/d")],
    [ROOT, row(b"a", runs=(5,), size=6)],
    [ROOT, row(b"a", FileKind.DIRECTORY, runs=(5,))],
    [ROOT, row(b"a", FileKind.HARDLINK, target=b"b")],
    [ROOT, row(b"a", FileKind.HARDLINK, target=b"a")],
    [ROOT, row(b"b", FileKind.HARDLINK, target=b"/a")],
    [ROOT, row(b"b", FileKind.HARDLINK, target=b"")],
    [ROOT, row(b"b", FileKind.HARDLINK, target=b"../a")],
]


@pytest.mark.parametrize("rows", FORGED)
def test_rows_that_no_tree_has(rows: list[Row]) -> None:
    """Names that lead out, twice, out of order, without their folder; lengths that contradict; links to what is not before them."""
    with pytest.raises(DamagedError):
        decoded(rows)


def test_a_tree_that_is_sound() -> None:
    """Folders side by side and in each other, names that sort around the slash, and links backwards are taken."""
    rows = [
        ROOT,
        folder(b"a"),
        row(b"a/b", runs=(3, 4, 5), size=12),
        folder(b"a/c"),
        row(b"a/c/d"),
        row(b"a/e", FileKind.HARDLINK, target=b"a/b"),
        row(b"a!"),
        row(b"b", FileKind.SYMLINK, target=b"/../anywhere"),
    ]
    assert decoded(rows) == rows
    assert list(data_runs(rows[2])) == [(0, 3), (7, 5)]
    assert rows[2].stored == 8


def test_from_the_middle_only_order_and_names_are_known() -> None:
    """A reader that begins in the middle knows no folders, but takes no row twice and none that leads out."""
    assert len(decoded([row(b"a/b"), row(b"c/d")], Position.in_the_middle())) == 2
    for rows in ([row(b"c"), row(b"a")], [row(b"../a")], [ROOT]):
        with pytest.raises(DamagedError):
            decoded(rows, Position.in_the_middle())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xdd\0\0\0\0",
        b"\xdd\xff\xff\xff\xff",
        encode_chunk([encode_row(ROOT)])[:-1],
        encode_chunk([encode_row(ROOT)]) + b"x",
        encode_chunk([b"\x91" * 100_000]),
        encode_chunk([encode_row(row(b"%05d" % number)) for number in range(MAX_ROWS + 1)]),
        bytes(MAX_CATALOGUE_CHUNK + 1),
        msgspec.msgpack.encode([["", "file", -1, 0, 0, 0, 0, 0, 0]]),
        msgspec.msgpack.encode([[b"", "nothing", 0, 0, 0, 0, 0, 0, 0]]),
        msgspec.msgpack.encode([[b"", "directory", 0, 0, 0, 0, 0, 0, 0, [1] * (MAX_RUNS + 3)]]),
    ],
)
def test_bytes_that_are_no_catalogue(data: bytes) -> None:
    """Whatever somebody put there, it is damage, found before it takes memory."""
    with pytest.raises(DamagedError):
        decode_chunk(data, 0, Position())


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """No bytes make a reader fail in another way."""
    try:
        rows = decode_chunk(data, 0, Position())
    except DamagedError:
        return
    assert rows[0].path == b""


def test_another_weight() -> None:
    """A chunk whose files have more or less content than its place says is refused."""
    chunk = encode_chunk([encode_row(ROOT), encode_row(row(b"a", runs=(5,), size=5))])
    assert len(decode_chunk(chunk, 5, Position())) == 2
    with pytest.raises(DamagedError):
        decode_chunk(chunk, 6, Position())


def test_where_chunks_end() -> None:
    """Not below the least length, at the latest at the largest or with the most rows, and in between where paths say."""
    names = [b"%d" % number for number in range(10_000)]
    assert not any(ends_chunk(name, 10, MIN_CHUNK - 1, 100) for name in names)
    assert 10 < sum(ends_chunk(name, 10, MIN_CHUNK, 100) for name in names) < 60
    assert ends_chunk(b"a", MAX_ROWS, 10, 100)
    assert ends_chunk(b"a", 10, MAX_CHUNK, 1)
