"""Puts chunks and tree nodes where the repository has them not yet: the rules of deduplication, the same for disks, streams and trees of files."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab_backup.repository.pack import PackKind
from lab_backup.repository.packer import Packer
from lab_backup.repository.repository import Repository

# What tells encrypted data from other: 1 KiB from the middle of one new chunk in 64 (ids are random). That is well below 1 % of the
# time that compressing the 64 takes.
SAMPLE_ONE_IN = 64
SAMPLE_BYTES = 1024


@dataclass(slots=True)
class Counts:
    """What happened to the chunks of a disk, stream or tree. Bytes read from the source, bytes stored (compressed, encrypted)."""

    bytes_read: int = 0
    bytes_stored: int = 0
    chunks_new: int = 0
    chunks_reused: int = 0
    bytes_new: int = 0  # of the new chunks, before compression
    bytes_new_stored: int = 0
    sampled: int = 0
    entropy_sum: float = 0.0

    @property
    def entropy(self) -> float | None:
        """The mean entropy of the sampled chunks, in bits a byte; None where none was sampled."""
        return round(self.entropy_sum / self.sampled, 3) if self.sampled else None

    def add(self, other: "Counts") -> None:
        """Take `other` in."""
        self.bytes_read += other.bytes_read
        self.bytes_stored += other.bytes_stored
        self.chunks_new += other.chunks_new
        self.chunks_reused += other.chunks_reused
        self.bytes_new += other.bytes_new
        self.bytes_new_stored += other.bytes_new_stored
        self.sampled += other.sampled
        self.entropy_sum += other.entropy_sum


def entropy(data: memoryview) -> float:
    """Return the entropy of the bytes of `data`, in bits a byte, from 0 to 8."""
    length = len(data)
    return math.log2(length) - sum(count * math.log2(count) for count in Counter(bytes(data)).values()) / length


class ChunkStore:
    """Stores what is new through one packer, and remembers which older packs the rest relies on.

    `chunks` may be called by many threads; everything else belongs to the thread that owns the backup.
    """

    def __init__(self, repository: Repository, packer: Packer) -> None:
        """Look up in `repository`, store by `packer`."""
        self._repository = repository
        self._packer = packer
        self.used_packs: set[int] = set()  # not made here, that what was written so far relies on

    def chunks(
        self,
        chunks: Sequence[memoryview],
        counts: Counts,
        used: set[int],
        *,
        is_zero: Callable[[bytes, int], bool] = lambda _identity, _length: False,
    ) -> list[bytes | None]:
        """Return the ids of chunks, after those that the repository lacks were stored; None for one that `is_zero` (id, length) says is not to be.

        What happened is added to `counts`; packs that are relied on go to `used`, which the caller adds to `used_packs` in the owning thread.
        """
        repository, packer = self._repository, self._packer
        chunk_id = repository.chunk_id
        ids: list[bytes | None] = [chunk_id(chunk) for chunk in chunks]
        cache = repository.cache
        new = []
        with cache.snapshot() as get:
            for slot, chunk in enumerate(chunks):
                identity = ids[slot]
                if identity is None or is_zero(identity, len(chunk)):
                    ids[slot] = None
                    continue
                pack = cache.usable(identity, get(identity))
                if pack is not None:
                    used.add(pack)
                    counts.chunks_reused += 1
                elif packer.claim(identity):
                    new.append((identity, chunk))
                else:
                    counts.chunks_reused += 1
        for identity, chunk in new:
            stored = packer.store(PackKind.DATA, identity, chunk)
            counts.bytes_stored += stored
            counts.bytes_new_stored += stored
            counts.bytes_new += len(chunk)
            counts.chunks_new += 1
            if identity[-1] % SAMPLE_ONE_IN == 0:
                middle = len(chunk) // 2
                counts.entropy_sum += entropy(chunk[middle : middle + SAMPLE_BYTES])
                counts.sampled += 1
        return ids

    def node(self, node: bytes, counts: Counts) -> bytes:
        """Return the id of a tree node, after it was stored where the repository lacks it."""
        identity = self._repository.node_id(node)
        if not self.rely_on(identity) and self._packer.claim(identity):
            counts.bytes_stored += self._packer.store(PackKind.TREE, identity, node)
        return identity

    def rely_on(self, identity: bytes) -> bool:
        """Return whether the repository has this blob in a place that new backups may refer to; if so, this backup does from now on."""
        cache = self._repository.cache
        with cache.snapshot() as get:
            pack = cache.usable(identity, get(identity))
        if pack is None:
            return False
        self.used_packs.add(pack)
        return True
