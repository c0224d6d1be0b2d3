"""Compression: what goes in comes out, and nothing that a stored chunk claims is believed."""

import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.repository.codec import Codec, compressor, decompress
from lab_backup.repository.errors import ChunkCorruptError
from lab_backup.units import MiB

SPECS = ["none", "zstd", "zstd:1", "zstd:19", "gzip", "gzip:1", "gzip:9"]


@given(data=st.binary(max_size=5000), repeat=st.integers(1, 20), spec=st.sampled_from(SPECS))
def test_round_trip(data: bytes, repeat: int, spec: str) -> None:
    """Whatever the codec chose to do, decompressing gives the same bytes."""
    raw = data * repeat
    codec, packed = compressor(spec)(raw)
    assert bytes(decompress(codec, packed, len(raw))) == raw
    assert len(packed) <= len(raw)


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    """A chunk that would save less than 3 % is not worth decompressing."""
    noise = bytes(zstandard.ZstdCompressor(level=1).compress(bytes(range(256)) * 4)) + bytes(range(256)) * 2
    assert compressor("zstd")(noise[:20])[0] == Codec.NONE
    assert compressor("zstd")(bytes(4096))[0] == Codec.ZSTD
    assert compressor("gzip")(bytes(4096))[0] == Codec.ZLIB


@pytest.mark.parametrize(
    "spec", ["", "lz4", "zstd:0", "zstd:23", "gzip:10", "none:1", "zstd:-1", "zstd:x", "zstd:²", "zstd:" + "9" * 5000]
)
def test_unknown_compression(spec: str) -> None:
    """A spec that makes no sense is refused in words, however odd its level."""
    with pytest.raises(UsageError):
        compressor(spec)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("claimed", [0, 999, 1001, 64 * MiB])
def test_length_must_be_the_recorded_one(codec: Codec, claimed: int) -> None:
    """A chunk that decompresses to another length than was recorded is corrupt."""
    raw = bytes(1000)
    packed = {
        Codec.NONE: raw,
        Codec.ZSTD: zstandard.ZstdCompressor(write_content_size=True).compress(raw),
        Codec.ZLIB: zlib.compress(raw),
    }[codec]
    with pytest.raises(ChunkCorruptError):
        decompress(codec, packed, claimed)


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.ZLIB])
def test_garbage_is_corrupt(codec: Codec) -> None:
    """Bytes that no compressor made, an empty string and a cut-off stream are corrupt."""
    whole = compressor("zstd" if codec == Codec.ZSTD else "gzip")(b"abc" * 1000)[1]
    for bad in (b"", b"\x00" * 40, b"\xff" * 40, bytes(whole)[:-3]):
        with pytest.raises(ChunkCorruptError):
            decompress(codec, bad, 3000)


def test_unknown_codec() -> None:
    """A codec from the future is corrupt, not a crash."""
    with pytest.raises(ChunkCorruptError):
        decompress(7, b"abc", 3)


def zstd_bomb(*, with_size: bool) -> bytes:
    """Return a frame of 256 MiB of zeroes, which says so or does not."""
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=256 * MiB if with_size else -1)
    return b"".join(stream.compress(bytes(MiB)) for _ in range(256)) + stream.flush()


def zlib_bomb() -> bytes:
    """Return a stream of 64 MiB of zeroes."""
    stream = zlib.compressobj(1)
    return b"".join(stream.compress(bytes(MiB)) for _ in range(64)) + stream.flush()


@pytest.mark.parametrize(
    ("codec", "bomb"),
    [(Codec.ZSTD, zstd_bomb(with_size=True)), (Codec.ZSTD, zstd_bomb(with_size=False)), (Codec.ZLIB, zlib_bomb())],
    ids=["zstd", "zstd of unknown size", "zlib"],
)
def test_bomb(codec: Codec, bomb: bytes) -> None:
    """A chunk that would expand to far more than the 1000 bytes recorded for it costs no memory to speak of."""
    tracemalloc.start()
    try:
        with pytest.raises(ChunkCorruptError):
            decompress(codec, bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < MiB
    finally:
        tracemalloc.stop()
