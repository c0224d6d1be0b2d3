"""Compression of single chunks: zstd, gzip (zlib, RFC 1950) or none.

Every chunk carries the codec that it was stored with, so a repository may hold all of them.
"""

import re
import threading
import zlib
from enum import IntEnum
from typing import Protocol

import zstandard

from lab_backup.blocks import Buffer
from lab_backup.errors import UsageError
from lab_backup.repository.errors import ChunkCorruptError

# A chunk that shrinks by less than this is stored as it is: the saving is not worth decompressing it at each restore.
WORTHWHILE = 0.97


class Codec(IntEnum):
    """The byte that says how a chunk is stored."""

    NONE = 0
    ZSTD = 1
    ZLIB = 2


class Compressor(Protocol):
    """Turns a chunk into what is stored."""

    def __call__(self, data: Buffer) -> tuple[Codec, Buffer]:
        """Return the codec and the bytes to store; `data` itself where compressing does not help. Thread-safe."""
        ...


_local = threading.local()


def _zstd(level: int) -> zstandard.ZstdCompressor:
    """Return this thread's compressor: zstd contexts must not be shared between threads."""
    contexts: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if contexts is None:
        contexts = _local.compressors = {}
    if level not in contexts:
        contexts[level] = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return contexts[level]


def compressor(spec: str) -> Compressor:
    """Return the compressor that `spec` names: `zstd`, `zstd:LEVEL` (1 to 22), `gzip`, `gzip:LEVEL` (1 to 9), `none`.

    Raises UsageError for anything else.
    """
    name, _, level_text = spec.partition(":")
    if name == "none" and not level_text:
        return lambda data: (Codec.NONE, data)
    limits = {"zstd": (3, 22), "gzip": (6, 9)}
    if name not in limits or not re.fullmatch(r"[0-9]{0,4}", level_text):
        raise UsageError(f"{spec[:40]!r} is not a compression", hint="write zstd, zstd:LEVEL, gzip, gzip:LEVEL or none")
    default, highest = limits[name]
    level = int(level_text) if level_text else default
    if not 1 <= level <= highest:
        raise UsageError(f"{name} has no level {level}", hint=f"choose 1 to {highest}")

    def compress(data: Buffer) -> tuple[Codec, Buffer]:
        if name == "zstd":
            codec, packed = Codec.ZSTD, _zstd(level).compress(data)
        else:
            codec, packed = Codec.ZLIB, zlib.compress(data, level)
        return (codec, packed) if len(packed) < len(data) * WORTHWHILE else (Codec.NONE, data)

    return compress


def decompress(codec: int, data: Buffer, raw_length: int) -> Buffer:
    """Return the chunk of `raw_length` bytes. Never allocates more than that, whatever `data` claims.

    Raises ChunkCorruptError where `data` is not what its codec and length say.
    """
    try:
        if codec == Codec.NONE:
            raw: Buffer = data
        elif codec == Codec.ZSTD:
            if zstandard.frame_content_size(data) != raw_length:
                raise ChunkCorruptError("a compressed chunk does not have the length that was recorded")
            raw = _zstd_decompressor().decompress(data, max_output_size=raw_length)
        elif codec == Codec.ZLIB:
            stream = zlib.decompressobj()
            raw = stream.decompress(data, raw_length + 1)
            if not stream.eof:
                raise ChunkCorruptError("a compressed chunk does not end where it should")
        else:
            raise ChunkCorruptError(f"codec {codec} is unknown")
    except (zstandard.ZstdError, zlib.error) as error:
        raise ChunkCorruptError(f"a chunk does not decompress: {error}") from error
    if len(raw) != raw_length:
        raise ChunkCorruptError("a chunk does not have the length that was recorded")
    return raw


def _zstd_decompressor() -> zstandard.ZstdDecompressor:
    context: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if context is None:
        context = _local.decompressor = zstandard.ZstdDecompressor()
    return context
