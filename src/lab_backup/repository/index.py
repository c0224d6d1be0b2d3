"""Index objects: for a number of packs, where each of their blobs lies.

An index object is whole in itself and immutable. The repository's index is the union of all of them, less the packs that a `removed` object
names. Byte table in `docs/format/objects.md`.
"""

import struct
from typing import NamedTuple

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.pack import ENTRY, MAX_SIZE, WRAPPED, PackInfo, PackKind, check_table

_PACK = struct.Struct(f"<16sBQ{WRAPPED}sI")  # id, kind, size, wrapped key, entries


class IndexedPack(NamedTuple):
    """A pack and its table of contents (entries of `pack.ENTRY`, undecoded: there are millions)."""

    info: PackInfo
    table: bytes


def encode(packs: list[IndexedPack]) -> bytes:
    """Return the payload of an index object."""
    parts = []
    for info, table in packs:
        parts += [_PACK.pack(info.id, info.kind, info.size, info.wrapped, len(table) // ENTRY.size), table]
    return b"".join(parts)


def decode(payload: bytes, path: str) -> list[IndexedPack]:
    """Return the packs in an index object's payload, every entry checked to lie inside its pack.

    Raises DamagedError, naming `path`.
    """
    packs = []
    at = 0
    while at < len(payload):
        if at + _PACK.size > len(payload):
            raise DamagedError(f"{path} ends in the middle of an entry")
        pack_id, kind, size, wrapped, count = _PACK.unpack_from(payload, at)
        at += _PACK.size
        table = payload[at : at + count * ENTRY.size]
        at += len(table)
        if kind not in set(PackKind) or size > MAX_SIZE or len(table) != count * ENTRY.size:
            raise DamagedError(f"{path} describes an impossible pack")
        check_table(table, size, path)
        packs.append(IndexedPack(PackInfo(pack_id, PackKind(kind), size, wrapped), table))
    return packs
