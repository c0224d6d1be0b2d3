"""Reading a pack's own table of contents: what the index is rebuilt from."""

from collections.abc import Callable

from lab_backup.repository.errors import DamagedError
from lab_backup.repository.index import IndexedPack
from lab_backup.repository.one_object import read_object
from lab_backup.repository.pack import (
    END_MAGIC,
    ENTRY,
    HEADER_SIZE,
    MAX_ENTRIES,
    MAX_SIZE,
    TAG,
    TRAILER,
    PackKind,
    check_table,
    pack_path,
    parse_header,
    unwrap,
)
from lab_backup.storage.base import StorageBackend


def read_table(
    storage: StorageBackend, pack_id: bytes, size: int, repository_id: bytes, wrapping_key: Callable[[PackKind], bytes]
) -> IndexedPack:
    """Return what the pack of `size` bytes says of itself. Raises DamagedError, ObjectNotFoundError.

    What looks damaged is read once more: it may have been its way that did it, and no store adds a checksum to a part of an object.
    """
    try:
        return _read_once(storage, pack_id, size, repository_id, wrapping_key)
    except DamagedError:
        return _read_once(storage, pack_id, size, repository_id, wrapping_key)


def _read_once(
    storage: StorageBackend, pack_id: bytes, size: int, repository_id: bytes, wrapping_key: Callable[[PackKind], bytes]
) -> IndexedPack:
    path, what = pack_path(pack_id), f"pack {pack_id.hex()}"
    if not HEADER_SIZE + TRAILER.size <= size <= MAX_SIZE:
        raise DamagedError(f"{what} has an impossible size")
    info = parse_header(read_object(storage, path, 0, HEADER_SIZE), pack_id, size, repository_id)
    trailer = read_object(storage, path, size - TRAILER.size, TRAILER.size)
    if len(trailer) != TRAILER.size or trailer[-4:] != END_MAGIC:
        raise DamagedError(f"{what} does not end like a pack", hint="it is cut off or was overwritten")
    length, count, _ = TRAILER.unpack(trailer)
    at = size - TRAILER.size - length
    if at < HEADER_SIZE or count > MAX_ENTRIES or length != count * ENTRY.size + TAG:
        raise DamagedError(f"{what} claims an impossible table of contents")
    table = unwrap(info, repository_id, wrapping_key(info.kind)).decrypt_toc(
        pack_id, at, read_object(storage, path, at, length), count
    )
    check_table(table, at, what)
    return IndexedPack(info, table)
