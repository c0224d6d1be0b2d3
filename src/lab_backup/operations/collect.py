"""Garbage collection, as users ask for it."""

from datetime import timedelta

from lab_backup.operations.progress import Progress, Silent
from lab_backup.repository.collect import Collector
from lab_backup.repository.repository import Repository
from lab_backup.repository.sweep import Result

CollectResult = Result


def collect(
    repository: Repository,
    *,
    dry_run: bool = False,
    grace: int | None = None,
    exclusive: bool = False,
    progress: Progress | None = None,
) -> CollectResult:
    """Remove backups whose deletion can no longer be undone, and what nobody refers to.

    `grace` in seconds replaces the repository's own grace period; less than an hour needs `exclusive`, the caller's word that no
    backup is running on any host. Raises UsageError, BusyError, DamagedError; then nothing that a backup needs was touched.
    """
    shown = progress or Silent()
    seconds = None if grace is None else timedelta(seconds=grace)
    collector = Collector(
        repository,
        repository.cache.directory.parent,
        grace=seconds,
        exclusive=exclusive,
        step=lambda what: shown.start(None, what),
    )
    return collector.run(dry_run=dry_run)
