"""Numbers and layouts of the NBD protocol, as in the protocol document of the NetworkBlockDevice/nbd project.

All integers travel in network byte order.
"""

import errno
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

GREETING: Final = Struct(">QQH")  # magic, magic, handshake flags
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">QII")  # magic, option, length
OPTION_REPLY: Final = Struct(">QIII")  # magic, option, type, length
INFO_EXPORT: Final = Struct(">HQH")  # type, size, transmission flags
INFO_BLOCK_SIZE: Final = Struct(">HIII")  # type, minimum, preferred, maximum
REQUEST: Final = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY_MAGIC: Final = Struct(">I")
SIMPLE_REPLY: Final = Struct(">IQ")  # after the magic: error, cookie
CHUNK: Final = Struct(">HHQI")  # after the magic: flags, type, cookie, length
CHUNK_OFFSET: Final = Struct(">Q")
CHUNK_HOLE: Final = Struct(">QI")  # offset, length
CHUNK_ERROR: Final = Struct(">IH")  # error, length of the text
STATUS_CONTEXT: Final = Struct(">I")
STATUS_EXTENT: Final = Struct(">II")  # length, flags

MAX_STRING: Final = 4096
"""Bytes that an export name, a context name or an error text may have at most."""

MAX_STATUS_SPAN: Final = 2**32 - 65536
"""Bytes that one BLOCK_STATUS request may ask about: 32 bits, kept aligned to every block size there is."""

ALLOCATION: Final = "base:allocation"
"""The context that tells holes and zeroes apart from data; its flags are `Allocation`."""


def dirty_bitmap(name: str) -> str:
    """Return the context in which QEMU shows the dirty bitmap exported as `name`; its only flag is `DIRTY`."""
    return f"qemu:dirty-bitmap:{name}"


DIRTY: Final = 1


class Allocation(IntFlag):
    """What `base:allocation` says of a run. HOLE without ZERO leaves the content undefined."""

    HOLE = 1
    ZERO = 2


class Handshake(IntFlag):
    """What server and client can do during the handshake."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What the client may ask for before it uses an export."""

    ABORT = 2
    STARTTLS = 5
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """What the server may answer to an option."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    ERROR = 0x80000000  # this bit marks all of those below
    UNSUPPORTED = 0x80000001
    POLICY = 0x80000002
    INVALID = 0x80000003
    PLATFORM = 0x80000004
    TLS_REQUIRED = 0x80000005
    UNKNOWN = 0x80000006
    SHUTDOWN = 0x80000007
    BLOCK_SIZE_REQUIRED = 0x80000008
    TOO_BIG = 0x80000009


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    FLUSH = 4
    TRIM = 32
    WRITE_ZEROES = 64
    MULTI_CONNECTION = 256


class Command(IntEnum):
    """Requests on an open export."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


NO_HOLE: Final = 2
"""Request flag of WRITE_ZEROES: allocate the range, don't punch a hole."""


class Chunk(IntEnum):
    """Kinds of pieces of a structured reply; those with the highest bit set are errors."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR_BIT = 0x8000
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


CHUNK_DONE: Final = 1
"""Chunk flag: nothing follows for this request."""

_ERRNO = {1: errno.EPERM, 5: errno.EIO, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC}
_ERRNO |= {75: errno.EOVERFLOW, 95: errno.EOPNOTSUPP, 108: errno.ESHUTDOWN}


def native_errno(code: int) -> int:
    """Return this system's number for the protocol's error `code`; one that it does not define is EINVAL."""
    return _ERRNO.get(code, errno.EINVAL)


def printable(text: bytes) -> str:
    """Return what a server said as one short harmless line."""
    decoded = text[:MAX_STRING].decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in decoded)[:500].strip()
