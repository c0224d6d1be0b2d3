"""Packs: the large immutable objects that hold chunks and tree nodes.

A pack is a header with the pack's own key (wrapped), then blobs, then an encrypted table of contents and a trailer. So packs alone suffice to
rebuild the index. A blob's nonce is its offset in the pack, and each pack has a fresh random key, so no nonce repeats. Byte tables in
`docs/format/packs.md`.
"""

import os
import struct
import threading
from enum import IntEnum
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab_backup.blocks import Buffer
from lab_backup.direct_io import Memory
from lab_backup.repository.codec import decompress
from lab_backup.repository.errors import ChunkCorruptError, DamagedError
from lab_backup.units import MiB

MAGIC = b"LBPK"
END_MAGIC = b"LBPE"
VERSION = 1
TAG = 16  # bytes that AES-GCM adds
ID = 32  # bytes of a chunk id, BLAKE3-256
PACK_ID = 16

_HEAD = struct.Struct("<4sBBBx16s16s")  # magic, version, kind, wrapping, repository id, pack id
WRAPPED = 12 + 32 + TAG  # nonce, key, tag
HEADER_SIZE = _HEAD.size + WRAPPED
_ASSOCIATED = struct.Struct("<4sBB16s32sBI")  # magic, version, kind, repository id, blob id, codec, raw length
_TOC_ASSOCIATED = struct.Struct("<4sBB16s16sI")  # magic, version, kind, repository id, pack id, entries
TRAILER = struct.Struct("<II4s")  # stored length of the table, entries, magic
ENTRY = struct.Struct("<32sIIIB")  # id, offset, stored length with tag, raw length, codec
_WRAP_AES_GCM = 1

PACKS = "packs"  # the folder of them all
TARGET_SIZE = 32 * MiB  # few, large objects suit S3, SMB and NFS, and three of them in memory stay below 100 MiB
MAX_SIZE = 256 * MiB  # what a reader accepts
MAX_RAW = 64 * MiB  # the largest chunk a reader accepts
MAX_ENTRIES = 1024 * 1024  # blobs in a pack that a reader accepts


class PackKind(IntEnum):
    """What the blobs of a pack are."""

    DATA = 1
    TREE = 2


class Entry(NamedTuple):
    """Where a blob lies in its pack. Lengths and offset in bytes; `stored` includes the tag."""

    id: bytes
    offset: int
    stored: int
    raw: int
    codec: int


class PackInfo(NamedTuple):
    """What the index says of a whole pack. `wrapped` is its key as it stands in its header."""

    id: bytes
    kind: PackKind
    size: int
    wrapped: bytes

    @property
    def path(self) -> str:
        """Where the pack lies in the storage."""
        return pack_path(self.id)


def pack_path(pack_id: bytes) -> str:
    """Return the object path of a pack: 256 folders keep directories small on file systems."""
    name = pack_id.hex()
    return f"{PACKS}/{name[:2]}/{name}"


def nonce(offset: int) -> bytes:
    """Return the nonce of the blob at `offset` (96 bits, big-endian)."""
    return offset.to_bytes(12, "big")


class PackCipher:
    """The cipher of one pack: encrypts and decrypts its blobs. Thread-safe."""

    def __init__(self, key: bytes, kind: PackKind, repository_id: bytes) -> None:
        """Take the pack's own key, unwrapped."""
        self._aead = AESGCM(key)
        self._kind = kind
        self._repository_id = repository_id

    def _associated(self, blob_id: bytes, codec: int, raw: int) -> bytes:
        return _ASSOCIATED.pack(MAGIC, VERSION, self._kind, self._repository_id, blob_id, codec, raw)

    def encrypt_into(self, target: memoryview, offset: int, blob_id: bytes, codec: int, raw: int, data: Buffer) -> None:
        """Encrypt `data` into `target`, which is the blob's place in the pack, at `offset`."""
        self._aead.encrypt_into(nonce(offset), data, self._associated(blob_id, codec, raw), target)

    def decrypt(self, stored: Buffer, entry: Entry) -> tuple[Buffer, Buffer]:
        """Return the chunk, and the same compressed. The caller compares the chunk's id. Raises ChunkCorruptError."""
        if entry.raw > MAX_RAW:
            raise ChunkCorruptError("a chunk claims to be larger than any may be")
        try:
            packed = self._aead.decrypt(nonce(entry.offset), stored, self._associated(entry.id, entry.codec, entry.raw))
        except InvalidTag as error:
            raise ChunkCorruptError("a chunk does not pass authentication") from error
        return decompress(entry.codec, packed, entry.raw), packed

    def _toc_associated(self, pack_id: bytes, count: int) -> bytes:
        return _TOC_ASSOCIATED.pack(END_MAGIC, VERSION, self._kind, self._repository_id, pack_id, count)

    def encrypt_toc(self, pack_id: bytes, offset: int, table: bytes) -> bytes:
        """Return the encrypted table of contents that will lie at `offset`."""
        return self._aead.encrypt(nonce(offset), table, self._toc_associated(pack_id, len(table) // ENTRY.size))

    def decrypt_toc(self, pack_id: bytes, offset: int, stored: bytes, count: int) -> bytes:
        """Return the table of contents. Raises DamagedError."""
        try:
            table = self._aead.decrypt(nonce(offset), stored, self._toc_associated(pack_id, count))
        except InvalidTag as error:
            raise DamagedError(f"the table of contents of pack {pack_id.hex()} is damaged or forged") from error
        if len(table) != count * ENTRY.size:
            raise DamagedError(f"the table of contents of pack {pack_id.hex()} has the wrong length")
        return table


def unwrap(info: PackInfo, repository_id: bytes, wrapping_key: bytes) -> PackCipher:
    """Return the cipher of the pack. Raises DamagedError where its key was not wrapped by `wrapping_key`."""
    head = _HEAD.pack(MAGIC, VERSION, info.kind, _WRAP_AES_GCM, repository_id, info.id)
    try:
        key = AESGCM(wrapping_key).decrypt(info.wrapped[:12], info.wrapped[12:], head)
    except InvalidTag as error:
        raise DamagedError(f"the key of pack {info.id.hex()} is damaged or forged") from error
    return PackCipher(key, info.kind, repository_id)


def parse_header(data: bytes, pack_id: bytes, size: int, repository_id: bytes) -> PackInfo:
    """Return what the header says of the pack `pack_id` of `size` bytes. Raises DamagedError."""
    if len(data) < HEADER_SIZE or data[:4] != MAGIC:
        raise DamagedError(f"pack {pack_id.hex()} does not start like a pack")
    _, version, kind, _, owner, found = _HEAD.unpack_from(data)
    if version != VERSION:  # what version a repository has, its sealed config says; anybody can write this byte
        raise DamagedError(f"pack {pack_id.hex()} is damaged or forged: it claims to be of version {version}")
    if owner != repository_id or found != pack_id:
        raise DamagedError(f"pack {pack_id.hex()} does not belong here", hint="it was copied from elsewhere")
    if kind not in set(PackKind) or data[: _HEAD.size] != _HEAD.pack(
        MAGIC, VERSION, kind, _WRAP_AES_GCM, repository_id, pack_id
    ):
        raise DamagedError(f"the header of pack {pack_id.hex()} is damaged")
    return PackInfo(pack_id, PackKind(kind), size, data[_HEAD.size : HEADER_SIZE])


def check_table(table: bytes, limit: int, what: str) -> None:
    """Raise DamagedError, naming `what`, unless every entry of a table lies between the header and `limit`, and none grew when it was compressed."""
    if any(
        offset < HEADER_SIZE or not TAG <= stored <= raw + TAG or offset + stored > limit
        for _, offset, stored, raw, _ in ENTRY.iter_unpack(table)
    ):
        raise DamagedError(f"{what} names a place outside its pack")


class FinishedPack(NamedTuple):
    """A pack ready for the storage."""

    info: PackInfo
    data: memoryview
    table: bytes


class PackBuilder:
    """A pack being filled in memory, by many threads: `reserve` a place, then `put` the blob there.

    `closed` packs take no more; once every reserved blob was put, `finish` makes the whole.
    """

    def __init__(
        self, kind: PackKind, repository_id: bytes, wrapping_key: bytes, buffer: Memory, capacity: int
    ) -> None:
        """Start in `buffer`, which has room for `capacity` bytes of blobs besides header and table."""
        key, wrap_nonce = os.urandom(32), os.urandom(12)
        self.id = os.urandom(PACK_ID)
        self.kind = kind
        self._repository_id = repository_id
        head = _HEAD.pack(MAGIC, VERSION, kind, _WRAP_AES_GCM, repository_id, self.id)
        self._wrapped = wrap_nonce + AESGCM(wrapping_key).encrypt(wrap_nonce, key, head)
        self.cipher = PackCipher(key, kind, repository_id)
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._view[:HEADER_SIZE] = head + self._wrapped
        self._capacity = HEADER_SIZE + capacity
        self._at = HEADER_SIZE
        self._table = bytearray()
        self._lock = threading.Lock()
        self._open_blobs = 0
        self._closed = False

    @property
    def count(self) -> int:
        """How many blobs were reserved."""
        return len(self._table) // ENTRY.size

    def reserve(self, blob_id: bytes, stored: int, raw: int, codec: int) -> int | None:
        """Return the offset kept for a blob of `stored` bytes (with tag), or None where the pack is full.

        A pack takes at least one blob, however large. The caller serialises calls of `reserve` and `close`.
        """
        if self._table and self._at + stored > self._capacity:
            return None
        offset = self._at
        self._at += stored
        if self._at > len(self._buffer):
            raise ValueError("the pack's buffer is smaller than a chunk")
        with self._lock:
            self._open_blobs += 1
        self._table += ENTRY.pack(blob_id, offset, stored, raw, codec)
        return offset

    def put(self, offset: int, blob_id: bytes, raw: int, codec: int, data: Buffer) -> bool:
        """Encrypt `data` into its reserved place; return whether this completed a closed pack."""
        with self._view[offset : offset + len(data) + TAG] as target:
            self.cipher.encrypt_into(target, offset, blob_id, codec, raw, data)
        with self._lock:
            self._open_blobs -= 1
            return self._closed and self._open_blobs == 0

    def close(self) -> bool:
        """Take no more blobs; return whether the pack is complete already."""
        with self._lock:
            self._closed = True
            return self._open_blobs == 0

    def finish(self) -> FinishedPack:
        """Return the whole pack: its bytes, and its table for the index."""
        table = bytes(self._table)
        stored = self.cipher.encrypt_toc(self.id, self._at, table)
        tail = stored + TRAILER.pack(len(stored), self.count, END_MAGIC)
        end = self._at + len(tail)
        if end > len(self._buffer):
            raise ValueError("the pack's buffer has no room for its table")
        self._view[self._at : end] = tail
        info = PackInfo(self.id, self.kind, end, self._wrapped)
        return FinishedPack(info, self._view[:end], table)

    def take_buffer(self) -> Memory:
        """Return the buffer for another pack; this one is of no use any more."""
        self._view.release()
        return self._buffer
