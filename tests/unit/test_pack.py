"""Packs: what is put in comes out, at its place and from its own pack only; and what a pack says of itself is checked."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.codec import Codec, compressor
from lab_backup.repository.errors import ChunkCorruptError, DamagedError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.pack import (
    ENTRY,
    HEADER_SIZE,
    MAX_RAW,
    MAX_SIZE,
    TAG,
    TRAILER,
    Entry,
    FinishedPack,
    PackBuilder,
    PackInfo,
    PackKind,
    check_table,
    unwrap,
)
from lab_backup.repository.pack_table import read_table
from lab_backup.storage.memory import MemoryStorage
from lab_backup.units import KiB

REPOSITORY = bytes(range(16))
WRAPPING = {PackKind.DATA: b"d" * 32, PackKind.TREE: b"t" * 32}
BLOBS = [bytes([number]) * (100 + number) for number in range(20)]


def blob_id(data: bytes) -> bytes:
    """Return a made-up id."""
    return data[:1] * 32


def build(blobs: list[bytes], kind: PackKind = PackKind.DATA) -> FinishedPack:
    """Return a pack with these blobs, compressed where that helps."""
    compress = compressor("zstd:1")
    builder = PackBuilder(kind, REPOSITORY, WRAPPING[kind], bytearray(256 * KiB), 128 * KiB)
    for blob in blobs:
        codec, packed = compress(blob)
        offset = builder.reserve(blob_id(blob), len(packed) + TAG, len(blob), codec)
        assert offset is not None
        assert not builder.put(offset, blob_id(blob), len(blob), codec, packed)
    assert builder.close()
    return builder.finish()


def entries(table: bytes) -> list[Entry]:
    """Return the rows of a table."""
    return [Entry(*fields) for fields in ENTRY.iter_unpack(table)]


def stored(pack: FinishedPack, data: bytes | None = None) -> MemoryStorage:
    """Return a store that holds the pack's bytes, or `data` under its name."""
    storage = MemoryStorage()
    storage.upload(pack.info.path, bytes(pack.data) if data is None else data)
    return storage


def table_of(pack: FinishedPack, data: bytes | None = None) -> IndexedPack:
    """Return what the pack, or `data` in its place, says of itself."""
    size = pack.info.size if data is None else len(data)
    return read_table(stored(pack, data), pack.info.id, size, REPOSITORY, WRAPPING.__getitem__)


PACK = build(BLOBS)
WHOLE = bytes(PACK.data)


@pytest.mark.parametrize("kind", list(PackKind))
def test_round_trip(kind: PackKind) -> None:
    """The pack alone gives back its table, and with it every blob."""
    pack = build(BLOBS, kind)
    found = table_of(pack)
    assert found == IndexedPack(pack.info, pack.table)
    cipher = unwrap(found.info, REPOSITORY, WRAPPING[kind])
    for entry, blob in zip(entries(found.table), BLOBS, strict=True):
        assert bytes(cipher.decrypt(pack.data[entry.offset : entry.offset + entry.stored], entry)[0]) == blob


def test_nothing_shows() -> None:
    """Neither a blob nor its id can be seen in a pack."""
    pack = build([os.urandom(200)])
    assert entries(pack.table)[0].id not in bytes(pack.data)


def test_places_do_not_overlap() -> None:
    """Blobs lie one after the other behind the header, and the table behind them."""
    at = HEADER_SIZE
    for entry in entries(PACK.table):
        assert entry.offset == at
        at += entry.stored
    assert PACK.info.size == at + len(PACK.table) + TAG + TRAILER.size == len(WHOLE)


@given(position=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_bit_flips(position: int, bit: int) -> None:
    """A flipped bit anywhere is found: outside of the blobs by reading the table, inside by reading the blob."""
    data = bytearray(WHOLE)
    data[position] ^= 1 << bit
    hit = [entry for entry in entries(PACK.table) if entry.offset <= position < entry.offset + entry.stored]
    if not hit:
        with pytest.raises(DamagedError):
            table_of(PACK, bytes(data))
        return
    found = table_of(PACK, bytes(data))
    cipher = unwrap(found.info, REPOSITORY, WRAPPING[PackKind.DATA])
    with pytest.raises(ChunkCorruptError):
        cipher.decrypt(memoryview(data)[hit[0].offset : hit[0].offset + hit[0].stored], hit[0])


@given(length=st.integers(0, len(WHOLE) - 1))
def test_truncation(length: int) -> None:
    """A pack cut off anywhere is damage."""
    with pytest.raises(DamagedError):
        table_of(PACK, WHOLE[:length])


def test_extension() -> None:
    """A pack with something behind its end is damage."""
    with pytest.raises(DamagedError):
        table_of(PACK, WHOLE + bytes(100))
    with pytest.raises(DamagedError, match="impossible size"):
        read_table(stored(PACK), PACK.info.id, MAX_SIZE + 1, REPOSITORY, WRAPPING.__getitem__)


def test_under_another_name() -> None:
    """A pack under another pack's name, of another repository, or of the other kind, does not open."""
    other = build(BLOBS[:3])
    with pytest.raises(DamagedError):
        table_of(other, WHOLE)
    with pytest.raises(DamagedError):
        read_table(stored(PACK), PACK.info.id, len(WHOLE), bytes(16), WRAPPING.__getitem__)
    with pytest.raises(DamagedError):
        unwrap(PACK.info._replace(id=other.info.id), REPOSITORY, WRAPPING[PackKind.DATA])
    with pytest.raises(DamagedError):
        unwrap(PACK.info._replace(kind=PackKind.TREE), REPOSITORY, WRAPPING[PackKind.TREE])


def test_blobs_do_not_move() -> None:
    """A blob read from another place of its pack, from another pack, or as another blob, is corrupt."""
    cipher = unwrap(PACK.info, REPOSITORY, WRAPPING[PackKind.DATA])
    other = unwrap(build(BLOBS).info, REPOSITORY, WRAPPING[PackKind.DATA])
    first, second = entries(PACK.table)[:2]
    bytes_of = PACK.data[first.offset : first.offset + first.stored]
    for lie in (
        first._replace(offset=second.offset),
        first._replace(id=second.id),
        first._replace(raw=first.raw + 1),
        first._replace(raw=MAX_RAW + 1),
        first._replace(codec=Codec.NONE if first.codec else Codec.ZSTD),
    ):
        with pytest.raises(ChunkCorruptError):
            cipher.decrypt(bytes_of, lie)
    with pytest.raises(ChunkCorruptError):
        other.decrypt(bytes_of, first)
    assert bytes(cipher.decrypt(bytes_of, first)[0]) == BLOBS[0]


def test_newer_version() -> None:
    """A pack that says that it is newer is damaged: anybody can write that byte."""
    data = bytearray(WHOLE)
    data[4] = 9
    with pytest.raises(DamagedError, match="version 9"):
        table_of(PACK, bytes(data))
    data[40:100] = os.urandom(60)
    with pytest.raises(DamagedError, match="version 9"):
        table_of(PACK, bytes(data))


@pytest.mark.parametrize(("length", "count"), [(2**32 - 1, 2**32 - 1), (len(WHOLE), 1), (16, 0), (61, 1), (46, 1)])
def test_lying_trailer(length: int, count: int) -> None:
    """A trailer that claims a table of another size is refused before it is read."""
    data = bytearray(WHOLE)
    data[-TRAILER.size :] = TRAILER.pack(length, count, b"LBPE")
    with pytest.raises(DamagedError):
        table_of(PACK, bytes(data))


@pytest.mark.parametrize(
    "row",
    [
        (HEADER_SIZE - 1, 100, 100),
        (HEADER_SIZE, 15, 100),
        (HEADER_SIZE, 0, 0),
        (900, 117, 200),
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
        (HEADER_SIZE, 217, 200),
    ],
)
def test_lying_table(row: tuple[int, int, int]) -> None:
    """Entries before the header's end, too short for a tag, beyond the limit, or longer than their content are refused."""
    good = ENTRY.pack(bytes(32), HEADER_SIZE, 116, 100, 0)
    check_table(good, 1000, "pack")
    with pytest.raises(DamagedError):
        check_table(good + ENTRY.pack(bytes(32), *row, 0), 1000, "pack")


def test_full_pack() -> None:
    """A full pack takes no more, but an empty one takes any blob that its buffer can hold."""
    builder = PackBuilder(PackKind.DATA, REPOSITORY, bytes(32), bytearray(4000), 1000)
    assert builder.reserve(bytes(32), 600, 600, 0) == HEADER_SIZE
    assert builder.reserve(bytes(32), 600, 600, 0) is None
    assert builder.count == 1
    builder = PackBuilder(PackKind.DATA, REPOSITORY, bytes(32), bytearray(4000), 1000)
    assert builder.reserve(bytes(32), 3000, 3000, 0) == HEADER_SIZE


def test_many_threads() -> None:
    """Blobs that many threads put at once lie where they were reserved, and exactly one thread completes the pack."""
    builder = PackBuilder(PackKind.DATA, REPOSITORY, WRAPPING[PackKind.DATA], bytearray(256 * KiB), 128 * KiB)
    offsets = [builder.reserve(blob_id(blob), len(blob) + TAG, len(blob), 0) for blob in BLOBS]
    assert not builder.close()
    completed = []

    def put(at: int) -> None:
        offset = offsets[at]
        assert offset is not None
        completed.append(builder.put(offset, blob_id(BLOBS[at]), len(BLOBS[at]), 0, BLOBS[at]))

    threads = [threading.Thread(target=put, args=[at]) for at in range(len(BLOBS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(completed) == 1
    pack = builder.finish()
    cipher = unwrap(PackInfo(*pack.info), REPOSITORY, WRAPPING[PackKind.DATA])
    for entry, blob in zip(entries(pack.table), BLOBS, strict=True):
        assert bytes(cipher.decrypt(pack.data[entry.offset : entry.offset + entry.stored], entry)[0]) == blob
