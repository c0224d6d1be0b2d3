"""What may come back for a request, checked before it is believed.

A server may cut one answer into many chunks, in any order. Each class here takes the chunks of one request from the
stream and knows at the end whether they make up the whole answer. `ProtocolError` means that the server lies.
"""

from typing import Protocol

from lab_backup.nbd import protocol
from lab_backup.nbd.protocol import Chunk
from lab_backup.nbd.stream import Stream
from lab_backup.units import MiB

MAX_STATUS_REPLY = 16 * MiB
"""Bytes of one list of extents; nbdkit sends 8 MiB at most, QEMU 1 MiB."""

CHUNKS_PER_BYTE = 1 / 512
"""Chunks that a server may cut a read into: QEMU cuts at the borders of holes, which are sectors at least."""

_ZEROES = memoryview(bytes(MiB))


class ProtocolError(Exception):
    """The server sent what the protocol does not allow here; the connection cannot be used any more."""


class Reply(Protocol):
    """Takes the parts of an answer."""

    def max_chunks(self) -> int:
        """Return how many chunks an honest answer has at most."""
        ...

    def simple(self, stream: Stream) -> None:
        """Take what follows a simple reply without an error."""
        ...

    def chunk(self, stream: Stream, kind: int, length: int) -> None:
        """Take the `length` bytes of a chunk."""
        ...

    def complete(self) -> None:
        """Raise ProtocolError if parts are missing."""
        ...


class PlainReply:
    """The answer to a request that returns nothing but success."""

    def max_chunks(self) -> int:
        """One, and some for servers that send an error apart from the end."""
        return 4

    def simple(self, stream: Stream) -> None:
        """Nothing follows."""

    def chunk(self, stream: Stream, kind: int, length: int) -> None:
        """Refuse everything."""
        del stream
        raise ProtocolError(f"a chunk of type {kind} with {length} bytes where none belongs")

    def complete(self) -> None:
        """Nothing can be missing."""


class ReadReply:
    """Puts data and holes of one read where they belong."""

    def __init__(self, offset: int, view: memoryview, *, structured: bool) -> None:
        """Fill `view` with the bytes from `offset` of the export."""
        self._offset = offset
        self._view = view
        self._structured = structured
        self._filled: list[tuple[int, int]] = []

    def max_chunks(self) -> int:
        """In proportion to the length."""
        return 16 + int(len(self._view) * CHUNKS_PER_BYTE)

    def simple(self, stream: Stream) -> None:
        """All the data follows, unless chunks were agreed on."""
        if self._structured:
            raise ProtocolError("a simple reply to a read although structured ones were agreed on")
        stream.receive_into(self._view)
        self._filled.append((0, len(self._view)))

    def chunk(self, stream: Stream, kind: int, length: int) -> None:
        """Take data or a hole."""
        if kind == Chunk.OFFSET_DATA and length > protocol.CHUNK_OFFSET.size:
            (offset,) = protocol.CHUNK_OFFSET.unpack(stream.receive(protocol.CHUNK_OFFSET.size))
            stream.receive_into(self._place(offset, length - protocol.CHUNK_OFFSET.size))
        elif kind == Chunk.OFFSET_HOLE and length == protocol.CHUNK_HOLE.size:
            offset, hole = protocol.CHUNK_HOLE.unpack(stream.receive(length))
            place = self._place(offset, hole)
            for at in range(0, hole, len(_ZEROES)):
                part = place[at : at + len(_ZEROES)]
                part[:] = _ZEROES[: len(part)]
        else:
            raise ProtocolError(f"a chunk of type {kind} with {length} bytes in answer to a read")

    def _place(self, offset: int, length: int) -> memoryview:
        start = offset - self._offset
        if start < 0 or length == 0 or start + length > len(self._view):
            raise ProtocolError(f"{length} bytes at {offset}, outside of what was asked for")
        self._filled.append((start, start + length))
        return self._view[start : start + length]

    def complete(self) -> None:
        """Check that every byte came exactly once."""
        at = 0
        for start, end in sorted(self._filled):
            if start != at:
                raise ProtocolError("a read answered with gaps or overlaps")
            at = end
        if at != len(self._view):
            raise ProtocolError("a read answered in part")


class StatusReply:
    """Keeps the extents of one context and throws those of the others away."""

    def __init__(self, wanted: int, granted: frozenset[int]) -> None:
        """Keep the context with the id `wanted`; the server may also send the others that it has `granted`."""
        self._wanted = wanted
        self._expected = set(granted)
        self.extents = b""
        """Pairs of 32-bit length and flags, as they came."""

    def max_chunks(self) -> int:
        """One per context and the end."""
        return 4 + len(self._expected)

    def simple(self, stream: Stream) -> None:
        """Refuse: there would be no extents."""
        del stream
        raise ProtocolError("a simple reply to a request for extents")

    def chunk(self, stream: Stream, kind: int, length: int) -> None:
        """Take the extents of one context."""
        body = length - protocol.STATUS_CONTEXT.size
        if kind != Chunk.BLOCK_STATUS or body <= 0 or body % protocol.STATUS_EXTENT.size:
            raise ProtocolError(f"a chunk of type {kind} with {length} bytes in answer to a request for extents")
        if length > MAX_STATUS_REPLY:
            raise ProtocolError(f"a list of extents of {length} bytes")
        (context,) = protocol.STATUS_CONTEXT.unpack(stream.receive(protocol.STATUS_CONTEXT.size))
        if context not in self._expected:
            raise ProtocolError(f"extents of context {context}, which was not agreed on or came twice")
        self._expected.remove(context)
        if context == self._wanted:
            self.extents = stream.receive(body)
        else:
            stream.skip(body)

    def complete(self) -> None:
        """Check that the context that matters came."""
        if not self.extents:
            raise ProtocolError("no extents of the context that was asked for")
