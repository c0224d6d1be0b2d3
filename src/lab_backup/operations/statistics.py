"""The figures that a manifest keeps of its backup."""

import time

from lab_backup.operations.suspicion import Suspicion
from lab_backup.repository.chunk_store import Counts
from lab_backup.repository.manifest import Statistics


def statistics_of(
    counts: Counts, *, bytes_total: int, bytes_uploaded: int, began: float, suspicion: Suspicion
) -> Statistics:
    """Return what happened since `began` (by time.monotonic) to a source of `bytes_total`; `bytes_uploaded` went to the storage."""
    return Statistics(
        bytes_total=bytes_total,
        bytes_read=counts.bytes_read,
        bytes_stored=bytes_uploaded,
        chunks_new=counts.chunks_new,
        chunks_reused=counts.chunks_reused,
        duration_seconds=round(time.monotonic() - began, 3),
        bytes_new=counts.bytes_new,
        bytes_new_stored=counts.bytes_new_stored,
        entropy=counts.entropy,
        anomaly=suspicion.last_good is not None,
    )
