"""An NBD client: one connection to one export."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lab_backup.blocks import Buffer
from lab_backup.nbd import protocol
from lab_backup.nbd.address import Address, TcpAddress
from lab_backup.nbd.errors import NbdConnectionError, NbdRequestError
from lab_backup.nbd.negotiation import Export, negotiate
from lab_backup.nbd.protocol import Chunk, Command, Transmission
from lab_backup.nbd.replies import PlainReply, ProtocolError, ReadReply, Reply, StatusReply
from lab_backup.nbd.stream import Stream
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.units import KiB, MiB, format_size

REQUEST_SIZE = 1 * MiB
"""Bytes of one read or write. Measured over unix sockets: larger is not faster, smaller is."""

ZERO_REQUEST_SIZE = 128 * MiB
"""Bytes of one WRITE_ZEROES or TRIM: a server that must really write them still answers within the timeout."""

FLUSH_TIMEOUT = 600.0
"""Seconds that a flush may take at least: the host may have gigabytes of cache to write."""

FREE_STATUS_REQUESTS = 10_000
"""Requests for extents before the pace counts; a short disk may be as fragmented as it likes."""

STATUS_PACE = 32 * KiB
"""Bytes that requests for extents must advance on average, or the map of a disk would never end."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the server; `payload` are the bytes of a write."""

    command: Command
    offset: int = 0
    length: int = 0
    flags: int = 0
    payload: Buffer = b""

    def head(self, cookie: int) -> bytes:
        """Return the request as it goes over the wire, without the payload."""
        return protocol.REQUEST.pack(protocol.REQUEST_MAGIC, self.flags, self.command, cookie, self.offset, self.length)

    def __str__(self) -> str:
        name = self.command.name.lower().replace("_", " ")
        return f"{name} of {format_size(self.length)} at byte {self.offset}" if self.length else name


class NbdClient:
    """An open export. Calls are serialised by a lock, so several threads gain nothing from sharing one.

    Every method raises NbdRequestError where the server answers with an error (the client stays usable), and
    NbdConnectionError where the connection is lost, a request takes longer than the timeout or the server breaks the
    protocol (only `close` makes sense after that). Offsets and lengths are in bytes.
    """

    def __init__(self, stream: Stream, export: Export, name: str, timeout: float) -> None:
        """Take over a negotiated stream; `connect` is the way to get there."""
        self._stream = stream
        self._name = name
        self._timeout = timeout
        self._structured = export.structured
        self._flags = export.flags
        self._context_ids = export.contexts
        self._cookie = 0
        self._lock = threading.Lock()
        self._unanswered = False
        self._closed = False
        self.size = export.size
        self.read_only = Transmission.READ_ONLY in export.flags
        self.can_multi_connection = Transmission.MULTI_CONNECTION in export.flags
        self.can_trim = Transmission.TRIM in export.flags
        self.can_write_zeroes = Transmission.WRITE_ZEROES in export.flags
        self.contexts = frozenset(export.contexts)
        self.minimum_block = export.minimum_block
        self.maximum_block = export.maximum_block
        self._step = min(REQUEST_SIZE, export.maximum_block)

    @classmethod
    def connect(
        cls,
        address: Address,
        export: str,
        *,
        contexts: Sequence[str] = (),
        tls: TlsCredentials | None = None,
        timeout: float = 60.0,
    ) -> Self:
        """Open `export` of the server at `address`, with TLS if `tls` is given and never without it then.

        `contexts` are those that `status` will be asked for; look at the attribute of the same name for those that
        the server granted. `timeout` (seconds) bounds the handshake and each request later.
        Raises NbdConnectionError, NbdNegotiationError (trying again will not help), AccessDeniedError.
        """
        stream = Stream.connect(address, timeout)
        hostname = address.host if isinstance(address, TcpAddress) else None
        try:
            return cls.over(stream, export, contexts=contexts, tls=tls, hostname=hostname, timeout=timeout)
        except BaseException:
            stream.close()
            raise

    @classmethod
    def over(
        cls,
        stream: Stream,
        export: str,
        *,
        contexts: Sequence[str] = (),
        tls: TlsCredentials | None = None,
        hostname: str | None = None,
        timeout: float = 60.0,
    ) -> Self:
        """Open `export` over a `stream` that is connected already and that the client owns if this succeeds."""
        opened = negotiate(stream, export, contexts=contexts, tls=tls, hostname=hostname)
        return cls(stream, opened, export, timeout)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, of any length, with the bytes from `offset`."""
        view = buffer.cast("B")
        self._check_range(offset, len(view))
        block = self.minimum_block
        if offset % block == 0 and (offset + len(view)) % block == 0:
            self._read_aligned(offset, view)
            return
        start = offset // block * block
        stop = min(-(-(offset + len(view)) // block) * block, self.size)
        for at in range(start, stop, self._step):
            whole = memoryview(bytearray(min(self._step, stop - at)))
            self._read_aligned(at, whole)
            part = whole[max(offset - at, 0) : offset + len(view) - at]
            place = max(at - offset, 0)
            view[place : place + len(part)] = part

    def _read_aligned(self, offset: int, view: memoryview) -> None:
        for at in range(0, len(view), self._step):
            part = view[at : at + self._step]
            reply = ReadReply(offset + at, part, structured=self._structured)
            self._exchange(Request(Command.READ, offset + at, len(part)), reply)

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data`, whose place must be aligned to `minimum_block`. Durable only after `flush`."""
        view = memoryview(data).cast("B")
        self._check_write(Command.WRITE, offset, len(view))
        for at in range(0, len(view), self._step):
            part = view[at : at + self._step]
            self._exchange(Request(Command.WRITE, offset + at, len(part), payload=part), PlainReply())

    def write_zeroes(self, offset: int, length: int, *, may_trim: bool = True) -> None:
        """Make `length` bytes from `offset` read as zeroes; with `may_trim` they may become a hole.

        A server that cannot do it by itself is sent the zeroes.
        """
        self._check_write(Command.WRITE_ZEROES, offset, length)
        if not self.can_write_zeroes:
            zeroes = bytes(min(length, REQUEST_SIZE))
            for at in range(0, length, REQUEST_SIZE):
                self.write(offset + at, memoryview(zeroes)[: length - at])
            return
        flags = 0 if may_trim else protocol.NO_HOLE
        for at in range(0, length, ZERO_REQUEST_SIZE):
            part = min(ZERO_REQUEST_SIZE, length - at)
            self._exchange(Request(Command.WRITE_ZEROES, offset + at, part, flags), PlainReply())

    def trim(self, offset: int, length: int) -> None:
        """Tell the server that nobody needs these bytes any more; what they read as is undefined. Only advice."""
        self._check_write(Command.TRIM, offset, length)
        if not self.can_trim:
            return
        for at in range(0, length, ZERO_REQUEST_SIZE):
            self._exchange(Request(Command.TRIM, offset + at, min(ZERO_REQUEST_SIZE, length - at)), PlainReply())

    def flush(self) -> None:
        """Make everything durable that was written. Raises NbdRequestError where the server cannot promise that."""
        request = Request(Command.FLUSH)
        if Transmission.FLUSH not in self._flags:
            raise self._refusal(request, errno.EOPNOTSUPP, "it does not offer flushing")
        self._exchange(request, PlainReply(), max(self._timeout, FLUSH_TIMEOUT))

    def status(self, context: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Return `(offset, length, flags)` for the bytes from `start` to `end` (the end of the export), gapless.

        Neighbours with equal flags are merged. Lazy: a few requests of up to 4 GiB each, made as the result is used;
        reads may come in between. `start` must be aligned to `minimum_block`. The server answers each request for all
        contexts of the connection, so one that costs time is better asked over a connection of its own.
        """
        if context not in self._context_ids:
            raise ValueError(f"context {context} was not granted")
        stop = self.size if end is None else end
        self._check_range(start, stop - start)
        return self._merged_status(self._context_ids[context], start, stop)

    def _merged_status(self, context: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        held_start, held_flags = start, -1
        for at, flags in self._raw_status(context, start, stop):
            if flags != held_flags:
                if held_flags >= 0:
                    yield held_start, at - held_start, held_flags
                held_start, held_flags = at, flags
        if held_flags >= 0:
            yield held_start, stop - held_start, held_flags

    def _raw_status(self, context: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the start and flags of each extent."""
        at, requests = start, 0
        granted = frozenset(self._context_ids.values())
        asked = min(-(-stop // self.minimum_block) * self.minimum_block, self.size)
        while at < stop:
            if requests > FREE_STATUS_REQUESTS + (at - start) // STATUS_PACE:
                raise self._broken(f"extents that advance by less than {format_size(STATUS_PACE)} per request")
            requests += 1
            reply = StatusReply(context, granted)
            span = min(asked - at, protocol.MAX_STATUS_SPAN)
            self._exchange(Request(Command.BLOCK_STATUS, at, span), reply)
            for length, flags in protocol.STATUS_EXTENT.iter_unpack(reply.extents):
                if length == 0:
                    raise self._broken("an empty extent")
                yield at, flags
                at += length
                if at >= stop:
                    break

    def close(self) -> None:
        """Take leave of the server, if the connection still works, and close it. May be called several times."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._unanswered:
                self._stream.send(Request(Command.DISCONNECT).head(0))
        except NbdConnectionError:
            pass  # it is gone already, which is what we want
        finally:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: Request, reply: Reply, patience: float | None = None) -> None:
        """Send one request and take its whole answer."""
        with self._lock:
            if self._unanswered or self._closed:
                raise NbdConnectionError(
                    f"the connection to NBD export {self._name!r} is not usable any more",
                    hint="an earlier error has broken it, or it was closed",
                )
            self._unanswered = True  # until the last byte of the answer is here, whatever is raised on the way
            self._cookie += 1
            self._stream.expect(patience)
            self._stream.send(request.head(self._cookie), request.payload)
            try:
                failure = self._answer(reply)
            except ProtocolError as error:
                raise self._broken(str(error)) from error
            self._unanswered = False
        if failure is not None:
            number, text = failure
            raise self._refusal(request, number, text)

    def _answer(self, reply: Reply) -> tuple[int, str] | None:
        """Take the answer to the request that was just sent; return the error in it, if there is one."""
        failure: tuple[int, str] | None = None
        for _ in range(reply.max_chunks()):
            (magic,) = protocol.REPLY_MAGIC.unpack(self._stream.receive(protocol.REPLY_MAGIC.size))
            if magic == protocol.SIMPLE_REPLY_MAGIC:
                code, cookie = protocol.SIMPLE_REPLY.unpack(self._stream.receive(protocol.SIMPLE_REPLY.size))
                self._check_cookie(cookie)
                if code:
                    return protocol.native_errno(code), ""
                reply.simple(self._stream)
                reply.complete()
                return None
            if magic != protocol.STRUCTURED_REPLY_MAGIC or not self._structured:
                raise ProtocolError(f"a reply that begins with {magic:#010x}")
            chunk_flags, kind, cookie, length = protocol.CHUNK.unpack(self._stream.receive(protocol.CHUNK.size))
            self._check_cookie(cookie)
            if kind & Chunk.ERROR_BIT:
                failure = self._read_error(kind, length)
            elif kind != Chunk.NONE:
                reply.chunk(self._stream, kind, length)
            elif length or not chunk_flags & protocol.CHUNK_DONE:
                raise ProtocolError("an empty chunk in the middle of an answer")
            if chunk_flags & protocol.CHUNK_DONE:
                if failure is None:
                    reply.complete()
                return failure
        raise ProtocolError("an answer in more pieces than any honest one")

    def _check_cookie(self, cookie: int) -> None:
        if cookie != self._cookie:
            raise ProtocolError(f"an answer to request {cookie} instead of {self._cookie}")

    def _read_error(self, kind: int, length: int) -> tuple[int, str]:
        if not protocol.CHUNK_ERROR.size <= length <= 2 * protocol.MAX_STRING:
            raise ProtocolError(f"an error of {length} bytes")
        body = self._stream.receive(length)
        code, text_length = protocol.CHUNK_ERROR.unpack_from(body)
        text = body[protocol.CHUNK_ERROR.size :][:text_length]
        if code == 0 or len(text) != text_length:
            raise ProtocolError(f"an error chunk of type {kind} that makes no sense")
        return protocol.native_errno(code), protocol.printable(text)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not within the {self.size} of the export")

    def _check_write(self, command: Command, offset: int, length: int) -> None:
        self._check_range(offset, length)
        if self.read_only:
            raise self._refusal(Request(command, offset, length), errno.EPERM, "it is read-only")
        if offset % self.minimum_block or length % self.minimum_block:
            raise ValueError(f"{length} bytes at {offset} are not aligned to blocks of {self.minimum_block}")

    def _refusal(self, request: Request, number: int, text: str) -> NbdRequestError:
        said = f" (the server says: {text})" if text else ""
        return NbdRequestError(f"{request} on NBD export {self._name!r} failed: {os.strerror(number)}{said}", number)

    def _broken(self, what: str) -> NbdConnectionError:
        self._unanswered = True
        return NbdConnectionError(f"the NBD server breaks the protocol on export {self._name!r}: {what}")
