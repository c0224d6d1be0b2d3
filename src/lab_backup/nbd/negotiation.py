"""The handshake: from a fresh connection to an export that is ready for requests.

Fixed newstyle only; every server of the last ten years speaks it. Order: STARTTLS, STRUCTURED_REPLY, SET_META_CONTEXT, GO.
"""

import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab_backup.nbd import protocol
from lab_backup.nbd.errors import NbdConnectionError, NbdNegotiationError
from lab_backup.nbd.protocol import Handshake, Info, Option, OptionReply, Transmission
from lab_backup.nbd.stream import Stream
from lab_backup.nbd.tls import TlsCredentials
from lab_backup.units import KiB, MiB

MAX_OPTION_REPLY = 64 * KiB
"""Longer answers to an option than any honest one: two strings and some numbers."""

MAX_OPTION_REPLIES = 256
"""More answers to one option than any honest server gives."""

MAX_SIZE = 2**63 - 1
"""The largest offset that a file can have."""

DEFAULT_MAXIMUM_BLOCK = 32 * MiB
"""What the protocol says about servers that say nothing."""


@dataclass(frozen=True, slots=True)
class Export:
    """What the server told about the export; all sizes in bytes. `contexts` maps the granted ones to their ids."""

    size: int
    flags: Transmission
    structured: bool
    contexts: dict[str, int]
    minimum_block: int
    maximum_block: int


def negotiate(
    stream: Stream, export: str, *, contexts: Sequence[str], tls: TlsCredentials | None, hostname: str | None
) -> Export:
    """Open `export` on a fresh connection; with `tls` given, never without TLS.

    `hostname` is what the server's certificate must hold unless the credentials name something else. Contexts that
    the server does not know are left out of the result. Raises NbdNegotiationError.
    """
    _greet(stream)
    if tls is None:
        structured = _structured_replies(stream)
    else:
        _start_tls(stream, tls, tls.hostname or hostname)
        structured = _first_words_over_tls(stream)
    return _open(stream, export, contexts, structured=structured)


def _greet(stream: Stream) -> None:
    magic, version, flags = protocol.GREETING.unpack(stream.receive(protocol.GREETING.size))
    if magic != protocol.INIT_MAGIC:
        raise NbdNegotiationError("what answers there is no NBD server", hint="check the address and the port")
    if version != protocol.OPTION_MAGIC or not flags & Handshake.FIXED_NEWSTYLE:
        raise NbdNegotiationError("the NBD server is too old: it does not know the fixed newstyle handshake")
    stream.send(protocol.CLIENT_FLAGS.pack(flags & (Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES)))


def _start_tls(stream: Stream, tls: TlsCredentials, hostname: str | None) -> None:
    if hostname is None:
        raise NbdNegotiationError(
            "TLS over a unix socket needs the host name that the server's certificate holds",
            hint="set the credentials' hostname",
        )
    for kind, _ in _ask(stream, Option.STARTTLS):
        if kind != OptionReply.ACK:
            raise NbdNegotiationError(
                "the NBD server does not offer TLS, which was asked for",
                hint="switch TLS on in the server; the disk would otherwise travel in clear text",
            )
    context = tls.context()
    try:
        stream.secure(context, hostname)
    except ssl.SSLCertVerificationError as error:
        raise NbdNegotiationError(
            f"the certificate of the NBD server is not to be trusted: {error.verify_message}",
            hint=f"it must be signed by {tls.authority} and hold the name {hostname}",
        ) from error
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise NbdNegotiationError(f"no TLS session with the NBD server: {reason}") from error


def _first_words_over_tls(stream: Stream) -> bool:
    try:
        return _structured_replies(stream)
    except NbdConnectionError as error:
        if isinstance(error.__cause__, TimeoutError | BlockingIOError):
            raise
        # with TLS 1.3 a server refuses our certificate only after the handshake, by an alert or by hanging up
        raise NbdNegotiationError(
            f"the NBD server ended the TLS session as soon as it stood: {error.message}",
            hint="it probably refuses our client certificate: name one, signed by an authority that the server knows",
        ) from error


def _open(stream: Stream, export: str, contexts: Sequence[str], *, structured: bool) -> Export:
    granted = _select_contexts(stream, export, contexts) if structured and contexts else {}
    size, flags, minimum, maximum = None, Transmission(0), 1, DEFAULT_MAXIMUM_BLOCK
    for data in _information(stream, export):
        kind = int.from_bytes(data[:2], "big")
        if kind == Info.EXPORT:
            _, size, number = _unpack(protocol.INFO_EXPORT, data)
            flags = Transmission(number)
        elif kind == Info.BLOCK_SIZE:
            _, minimum, _, maximum = _unpack(protocol.INFO_BLOCK_SIZE, data)
    if size is None or size > MAX_SIZE:
        raise _broken(f"an export of {size} bytes")
    if minimum.bit_count() != 1 or minimum > 64 * KiB or maximum < minimum:
        raise _broken(f"block sizes from {minimum} to {maximum}")
    return Export(size, flags, structured, granted, minimum, maximum // minimum * minimum)


def _information(stream: Stream, export: str) -> Iterator[bytes]:
    for kind, data in _ask(stream, Option.GO, _string(export) + struct.pack(">HH", 1, Info.BLOCK_SIZE)):
        if kind & OptionReply.ERROR:
            raise _refused(kind, data, f"export {export!r}")
        if kind == OptionReply.INFO:
            yield data
        elif kind != OptionReply.ACK:
            raise _broken(f"answer {kind} to GO")


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise _broken(f"{len(data)} bytes of information where {layout.size} belong")
    return layout.unpack(data)


def _structured_replies(stream: Stream) -> bool:
    for kind, data in _ask(stream, Option.STRUCTURED_REPLY):
        if kind == OptionReply.ACK:
            return True
        if kind in (OptionReply.TLS_REQUIRED, OptionReply.SHUTDOWN):
            raise _refused(kind, data, "structured replies")
    return False


def _select_contexts(stream: Stream, export: str, contexts: Sequence[str]) -> dict[str, int]:
    queries = b"".join(_string(context) for context in contexts)
    body = _string(export) + struct.pack(">I", len(contexts)) + queries
    granted: dict[str, int] = {}
    for kind, data in _ask(stream, Option.SET_META_CONTEXT, body):
        if kind == OptionReply.UNSUPPORTED:
            return {}
        if kind & OptionReply.ERROR:
            raise _refused(kind, data, f"export {export!r}")
        if kind == OptionReply.ACK:
            continue
        name = data[4:].decode(errors="replace")
        number = int.from_bytes(data[:4], "big")
        if kind != OptionReply.META_CONTEXT or len(data) < 4 or name not in contexts or number in granted.values():
            raise _broken("a context that was not asked for")
        granted[name] = number
    return granted


def _ask(stream: Stream, option: Option, body: bytes = b"") -> Iterator[tuple[int, bytes]]:
    """Send an option; yield each answer, up to and including the one that ends it."""
    stream.send(protocol.OPTION.pack(protocol.OPTION_MAGIC, option, len(body)), body)
    for _ in range(MAX_OPTION_REPLIES):
        head = stream.receive(protocol.OPTION_REPLY.size)
        magic, answered, kind, length = protocol.OPTION_REPLY.unpack(head)
        if magic != protocol.OPTION_REPLY_MAGIC or answered != option:
            raise _broken(f"no answer to {option.name}")
        if length > MAX_OPTION_REPLY:
            raise _broken(f"{length} bytes in answer to {option.name}")
        yield kind, stream.receive(length)
        if kind == OptionReply.ACK or kind & OptionReply.ERROR:
            return
    raise _broken(f"answers to {option.name} without end")


def _string(text: str) -> bytes:
    raw = text.encode(errors="surrogateescape")
    if len(raw) > protocol.MAX_STRING:
        raise NbdNegotiationError(f"the name {text[:40]!r}... is longer than {protocol.MAX_STRING} bytes")
    return struct.pack(">I", len(raw)) + raw


def _broken(what: str) -> NbdNegotiationError:
    return NbdNegotiationError(f"the NBD server breaks the protocol in the handshake: {what}")


def _refused(kind: int, data: bytes, what: str) -> NbdNegotiationError:
    said = protocol.printable(data)
    said = f" (it says: {said})" if said else ""
    if kind == OptionReply.UNKNOWN:
        return NbdNegotiationError(f"the NBD server has no {what}{said}", hint="check the name of the export")
    if kind == OptionReply.TLS_REQUIRED:
        return NbdNegotiationError(
            f"the NBD server insists on TLS{said}",
            hint="name an authority, and a client certificate if it asks for one",
        )
    names = {
        OptionReply.UNSUPPORTED: "it does not know the request",
        OptionReply.POLICY: "its policy forbids it",
        OptionReply.PLATFORM: "its platform cannot",
        OptionReply.SHUTDOWN: "it is shutting down",
    }
    reason = next((text for number, text in names.items() if number == kind), f"error {kind:#x}")
    return NbdNegotiationError(f"the NBD server refuses {what}: {reason}{said}")
