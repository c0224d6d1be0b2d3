"""Streams and trees of files as a second reader reads them, written from docs/format/streams.md alone."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from support.independent_reader import IndependentReader


class Piece(NamedTuple):
    """A piece of a stream."""

    data: bytes
    weight: int


def pieces(reader: IndependentReader, root: str | None, size: int, weight: int = 0) -> Iterator[Piece]:
    """Return the pieces: the table of nodes."""

    def walk(identity: bytes, level: int | None, length: int, below: int) -> Iterator[Piece]:
        node = reader.blob(identity)
        form, found, count = struct.unpack_from("<BBH", node)
        assert form == 2
        assert level is None or found == level
        assert len(node) == 4 + 52 * count
        links = list(struct.iter_unpack("<32sIQQ", node[4:]))
        assert sum(link[2] for link in links) == length
        assert sum(link[3] for link in links) == below
        for child, skip, bytes_below, weight_below in links:
            if found:
                assert skip == 0
                yield from walk(child, found - 1, bytes_below, weight_below)
            else:
                chunk = reader.blob(child)
                assert skip + bytes_below <= len(chunk)
                yield Piece(chunk[skip : skip + bytes_below], weight_below)

    if root is not None:
        yield from walk(bytes.fromhex(root), None, size, weight)


def stream(reader: IndependentReader, entry: dict[str, Any]) -> bytes:
    """Return a whole stream."""
    return b"".join(piece.data for piece in pieces(reader, entry["root"], entry["size"]))


FIELDS = ("path", "kind", "mode", "uid", "gid", "mtime_ns", "ctime_ns", "inode", "size", "runs", "target", "major", "minor", "xattrs")  # fmt: skip


def tree(reader: IndependentReader, entry: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Return each row with the content of its file, holes filled: the table of rows."""
    contents = stream(reader, entry["contents"])
    at = 0
    for data, weight in pieces(reader, entry["catalogue"]["root"], entry["catalogue"]["size"], len(contents)):
        begin = at
        for values in msgspec.msgpack.decode(data):
            row = dict(zip(FIELDS, values, strict=True))
            content = b""
            for number, length in enumerate(row["runs"]):
                content += bytes(length) if number % 2 else contents[at : at + length]
                at += 0 if number % 2 else length
            assert len(content) == (row["size"] if row["kind"] == "file" else 0)
            yield row, content if row["kind"] == "file" else None
        assert at - begin == weight
    assert at == len(contents)
