"""Index objects: packs and their tables, there and back, and nothing believed that cannot be."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.index import IndexedPack, decode, encode
from lab_backup.repository.pack import ENTRY, HEADER_SIZE, MAX_SIZE, WRAPPED, PackInfo, PackKind

PACKS = [
    IndexedPack(
        PackInfo(bytes([number]) * 16, kind, 1000, bytes(WRAPPED)),
        b"".join(ENTRY.pack(os.urandom(32), HEADER_SIZE + at, 20, 100, 1) for at in range(number)),
    )
    for number, kind in enumerate([PackKind.DATA, PackKind.TREE, PackKind.DATA])
]
PAYLOAD = encode(PACKS)


def test_round_trip() -> None:
    """Packs come back as they were, one without blobs too; no packs are no bytes."""
    assert decode(PAYLOAD, "i") == PACKS
    assert decode(encode([]), "i") == []


@given(length=st.integers(1, len(PAYLOAD) - 1))
def test_truncation(length: int) -> None:
    """A payload cut off in the middle of a pack is damage; at the end of one it is just a shorter list."""
    borders = {len(encode(PACKS[:count])) for count in range(len(PACKS))}
    if length in borders:
        assert len(decode(PAYLOAD[:length], "i")) < len(PACKS)
        return
    with pytest.raises(DamagedError):
        decode(PAYLOAD[:length], "i")


@given(data=st.binary(max_size=400))
def test_nonsense(data: bytes) -> None:
    """Whatever the payload is, it decodes or is damage."""
    try:
        packs = decode(data, "i")
    except DamagedError:
        return
    assert encode(packs) == data


@pytest.mark.parametrize(
    ("kind", "size", "count", "row"),
    [
        (3, 1000, 1, (HEADER_SIZE, 20, 100)),
        (0, 1000, 1, (HEADER_SIZE, 20, 100)),
        (1, MAX_SIZE + 1, 1, (HEADER_SIZE, 20, 100)),
        (1, 2**64 - 1, 1, (HEADER_SIZE, 20, 100)),
        (1, 1000, 2**32 - 1, (HEADER_SIZE, 20, 100)),
        (1, 1000, 2, (HEADER_SIZE, 20, 100)),
        (1, 1000, 1, (0, 20, 100)),
        (1, 1000, 1, (990, 20, 100)),
        (1, 1000, 1, (HEADER_SIZE, 15, 100)),
        (1, 1000, 1, (2**32 - 1, 2**32 - 1, 2**32 - 1)),
        (1, 1000, 1, (HEADER_SIZE, 500, 20)),
    ],
)
def test_lies(kind: int, size: int, count: int, row: tuple[int, int, int]) -> None:
    """Unknown kinds, impossible sizes and counts, and places outside of the pack are refused."""
    head = struct.pack(f"<16sBQ{WRAPPED}sI", bytes(16), kind, size, bytes(WRAPPED), count)
    with pytest.raises(DamagedError):
        decode(head + ENTRY.pack(bytes(32), *row, 0), "i")
