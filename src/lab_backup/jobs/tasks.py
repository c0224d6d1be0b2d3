"""What each type of job does: values out of its row, an operation, and what is to be remembered of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from lab_backup.catalog.base import Session, Sessions
from lab_backup.catalog.credentials import credentials_of, passphrase_of
from lab_backup.catalog.housekeeping import forget_old
from lab_backup.catalog.news import SEVERITIES, NotificationConfig, mark_sent, unsent
from lab_backup.catalog.places import KvmHost, PodmanHost, Storage
from lab_backup.catalog.preferences import read_preferences
from lab_backup.catalog.queue import backup_job, new_job
from lab_backup.catalog.records import (
    forget_backups,
    host_answered,
    keep_sample,
    known_backups,
    removable,
    replace_sources,
    retention_of,
    set_problem,
    sources_of,
    store_backup,
)
from lab_backup.catalog.sources import KINDS, members
from lab_backup.catalog.summary import week
from lab_backup.catalog.telling import tell
from lab_backup.catalog.work import BackupRow, Job, Schedule
from lab_backup.errors import LabBackupError, NotFoundError, UsageError
from lab_backup.jobs.progress import JobProgress
from lab_backup.notify.channels import Message, ping, send
from lab_backup.operations import inventory
from lab_backup.operations.backup import backup_vm
from lab_backup.operations.backup_container import ContainerOptions, backup_container
from lab_backup.operations.backup_pod import backup_pod
from lab_backup.operations.backup_volume import VolumeOptions, backup_volume
from lab_backup.operations.catalogue import BackupSummary, find_backup, list_backups, summary
from lab_backup.operations.collect import collect
from lab_backup.operations.lifecycle import archive, delete, protect, unarchive, undelete, unprotect
from lab_backup.operations.prune import make_policy, prune
from lab_backup.operations.replicate import replicate
from lab_backup.operations.repositories import open_repository
from lab_backup.operations.restore import restore_vm
from lab_backup.operations.restore_container import restore_container
from lab_backup.operations.restore_pod import restore_pod
from lab_backup.operations.restore_volume import restore_volume
from lab_backup.operations.verify import verify
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import new_backup_id
from lab_backup.security.sealed import unseal
from lab_backup.sources.podman.restore import Options

MOST_NEWS = 50  # in one message; all are in the inbox


def _nothing(_session: Session) -> None:
    """Remember nothing."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a job: `result` for its row, warnings, jobs that follow, and what to `record`, in the transaction that ends the job."""

    result: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    follow_up: tuple[Job, ...] = ()
    record: Callable[[Session], None] = _nothing


@dataclass(frozen=True, slots=True)
class Tools:
    """What a job needs besides its row: the catalog, the master key that opens credentials, and a folder for indexes."""

    sessions: Sessions
    master_key: bytes
    cache_directory: Path

    def row(self, table: type[Any], identity: str | UUID | None, what: str) -> Any:
        """Return a row. Raises NotFoundError."""
        with self.sessions() as session:
            found = session.get(table, UUID(str(identity))) if identity else None
        if found is None:
            raise NotFoundError(f"the {what} of this job does not exist any more")
        return found

    @contextmanager
    def repository(self, identity: UUID | None) -> Iterator[tuple[Storage, Repository]]:
        """Open the repository of a storage. What keeps it from being opened is noted on the storage."""
        storage: Storage = self.row(Storage, identity, "storage")
        try:
            opened = open_repository(
                storage.url,
                passphrase=passphrase_of(storage, self.master_key),
                cache_directory=self.cache_directory,
                credentials=credentials_of(storage, self.master_key),
            )
        except LabBackupError as error:
            with self.sessions() as session:
                set_problem(session, Storage, storage.id, error.message)
                session.commit()
            raise
        with opened as repository:
            yield storage, repository


def backup_values(made: BackupSummary, storage: UUID, schedule: UUID | None) -> dict[str, Any]:
    """Return a backup as the columns of its row."""
    point = datetime.fromisoformat(made.time) if made.time else datetime.now(UTC)
    verified = made.verified
    return {
        "backup_id": made.backup,
        "schedule_id": schedule,
        "source_type": made.source_kind,
        "source_id": made.source_id,
        "source_name": made.source,
        "backup_type": made.kind,
        "consistency": made.consistency,
        "tags": [*made.tags, *(["archive"] if made.archived and "archive" not in made.tags else [])],
        "status": "deleted" if made.deleted else "damaged" if verified is not None and not verified.ok else "complete",
        "size": made.bytes_total,
        "compressed_size": made.bytes_stored,
        "storage_backend_id": storage,
        "storage_path": f"manifests/{made.backup}",
        "checksum": made.checksum,
        "started_at": point,
        "completed_at": point,
        "verified_at": None if verified is None or not verified.ok else datetime.fromisoformat(verified.time),
        "protected": made.protected,
        "deleted_at": made.deleted,
        "metadata": {
            "host": made.host,
            "bytes_read": made.bytes_read,
            "duration_seconds": made.duration_seconds,
            "parent": made.parent,
            "trees": [tree.name for tree in made.trees],
            "warnings": list(made.warnings),
            "notes": list(made.notes),
        },
    }


def _recorded(made: BackupSummary, job: Job) -> Callable[[Session], None]:
    if job.storage_backend_id is None:
        raise UsageError("the job names no storage")
    values = backup_values(made, job.storage_backend_id, job.schedule_id)
    return lambda session: store_backup(session, values)


def _plain(value: Any) -> dict[str, Any]:
    """Return a result as plain JSON values."""
    found: dict[str, Any] = msgspec.to_builtins(asdict(value), enc_hook=str)
    return found


def run_backup(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Back up the source that the job names. What an earlier try has published already is taken over."""
    kind = KINDS[job.details["source_type"]]
    source = tools.row(kind.table, job.details["source_id"], kind.word)
    host = tools.row(kind.hosts, getattr(source, kind.host.key), "host")
    backup_id, full = job.details["backup_id"], bool(job.details.get("full"))
    with tools.repository(job.storage_backend_id) as (_, repository):
        match job.details["source_type"]:
            case "vm":
                made = backup_vm(
                    repository, source.uuid, connect=host.uri, full=full, backup_id=backup_id, progress=progress
                )
            case "volume":
                made = backup_volume(
                    repository, source.name, connect=host.uri, options=VolumeOptions(full=full), backup_id=backup_id,
                    progress=progress,
                )  # fmt: skip
            case word:
                back_up = backup_pod if word == "pod" else backup_container
                made = back_up(
                    repository, source.name, connect=host.uri, options=ContainerOptions(full=full), backup_id=backup_id,
                    progress=progress,
                )  # fmt: skip
    result = {
        "backup": made.backup,
        "kind": made.kind,
        "bytes_read": made.bytes_read,
        "bytes_stored": made.bytes_stored,
    }
    return Done(result, made.warnings, _chain(job, [made.backup], made.source), _recorded(made, job))


def run_schedule(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Queue a backup of each source that a schedule means."""
    progress.start(None, "finding what there is to back up")
    schedule: Schedule = tools.row(Schedule, job.schedule_id, "schedule")
    with tools.sessions() as session:
        sources = members(session, schedule)
    jobs = tuple(
        backup_job(
            source,
            schedule.storage_backend_id,
            backup_id=new_backup_id(),
            schedule=schedule,
            requested_by=job.requested_by,
        )
        for source in sources
    )
    return Done({"sources": len(jobs)}, () if jobs else ("there is nothing to back up",), jobs)


def _chain(job: Job, backups: list[str], name: str) -> tuple[Job, ...]:
    """Return what follows a backup, or its verification: first it is verified, then copied, as the schedule wants."""
    storage, schedule = job.storage_backend_id, job.schedule_id
    copy_to = job.details.get("replicate_to")
    if job.details.get("verify_after"):
        wanted = {"backups": backups, "replicate_to": copy_to}
        return (new_job("verify", wanted, title=f"verify {name}", storage=storage, schedule=schedule),)
    if copy_to:
        wanted = {"to": copy_to, "backups": backups}
        return (new_job("replicate", wanted, title=f"copy {name}", storage=storage, schedule=schedule),)
    return ()


def run_restore(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Check a backup, then restore it."""
    wanted: Mapping[str, Any] = job.details
    row: BackupRow = tools.row(BackupRow, wanted["backup"], "backup")
    with tools.repository(row.storage_backend_id) as (_, repository):
        backup = find_backup(repository, row.backup_id)
        checked = verify(repository, [row.backup_id], progress=progress)
        if checked.damage:
            raise LabBackupError(
                f"the backup is damaged in {len(checked.damage)} places, so nothing was restored",
                hint="take another backup, or look at what `verify` says",
            )
        if row.source_type == "vm":
            host: KvmHost = tools.row(KvmHost, wanted["host"], "host")
            vm = restore_vm(
                repository,
                backup,
                connect=host.uri,
                name=wanted.get("name"),
                overwrite=bool(wanted.get("overwrite")),
                directory=Path(wanted["directory"]) if wanted.get("directory") else None,
                start=bool(wanted.get("start")),
                trusted=bool(wanted.get("trusted")),
                progress=progress,
            )
            return Done(_plain(vm), vm.warnings)
        podman: PodmanHost = tools.row(PodmanHost, wanted["host"], "host")
        if row.source_type == "volume":
            volume = restore_volume(
                repository, backup, connect=podman.uri, to=wanted.get("name") or row.source_name, progress=progress
            )
            return Done(_plain(volume), tuple(volume.warnings))
        options = Options(
            name=wanted.get("name"),
            overwrite=bool(wanted.get("overwrite")),
            volume_suffix=wanted.get("volume_suffix") or "",
            trusted=bool(wanted.get("trusted")),
        )
        restore: Callable[..., Any] = restore_pod if row.source_type == "pod" else restore_container
        made = restore(
            repository,
            backup,
            connect=podman.uri,
            options=options,
            start=bool(wanted.get("start")),
            dry_run=bool(wanted.get("dry_run")),
            progress=progress,
        )
        return Done(_plain(made), tuple(made.warnings))


def run_verify(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Read every byte of the backups that are named, of all where none is."""
    with tools.repository(job.storage_backend_id) as (storage, repository):
        named = job.details.get("backups") or ()
        found = verify(repository, named, read_data=True, progress=progress)
        rows = [summary(find_backup(repository, name)) for name in named] or list_backups(repository).backups
    if found.damage:
        places = "; ".join(damage.what for damage in found.damage[:5])
        with tools.sessions() as session:
            _store_all(session, storage.id, rows)
            session.commit()
        raise LabBackupError(
            f"{len(found.damage)} damaged objects: {places}",
            hint="back up again: damaged parts are stored anew; then verify once more",
        )
    result = {"backups": found.backups, "checked": found.checked, "read": found.read, "bytes_read": found.bytes_read}
    follow = _chain_copy(job, rows)
    return Done(result, found.notes, follow, lambda session: _store_all(session, storage.id, rows))


def _chain_copy(job: Job, rows: list[BackupSummary]) -> tuple[Job, ...]:
    names = ", ".join(sorted({row.source for row in rows}))
    return _chain(job, list(job.details["backups"]), names) if job.details.get("replicate_to") else ()


def _store_all(session: Session, storage: UUID, rows: list[BackupSummary]) -> None:
    for made in rows:
        values = backup_values(made, storage, None)
        store_backup(session, values)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds, for the catalog. `gone` are backups that the catalog knew before and the repository does not have."""

    storage: UUID
    rows: list[BackupSummary]
    gone: set[str]
    unreadable: Mapping[str, str]

    def record(self, session: Session) -> None:
        """Make the catalog say the same. What was backed up since the list was made is left alone."""
        _store_all(session, self.storage, self.rows)
        forget_backups(session, self.storage, self.gone)


def _listing(tools: Tools, storage: UUID, repository: Repository) -> Listing:
    with tools.sessions() as session:
        before = known_backups(session, storage)
    listed = list_backups(repository)
    # A backup whose manifest cannot be read is damaged, not gone.
    there = {row.backup for row in listed.backups} | {path.rpartition("/")[2] for path in listed.unreadable}
    return Listing(storage, listed.backups, before - there, listed.unreadable)


def run_prune(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Mark as deleted what the retention of a source does not keep: of all its schedules the more generous rule counts, so that none removes what another one keeps."""
    progress.start(None, "deciding what to keep")
    schedule: Schedule = tools.row(Schedule, job.schedule_id, "schedule")
    with tools.sessions() as session:
        place = schedule.storage_backend_id
        rules = {
            (kind, identity): (retention_of(session, place, kind, identity), removable(session, place, kind, identity))
            for kind, identity in sources_of(session, schedule)
        }
    kept = removed = 0
    with tools.repository(schedule.storage_backend_id) as (storage, repository):
        for (kind, identity), (rule, ours) in rules.items():
            if rule is None:
                continue
            with suppress(NotFoundError):  # the catalog is a copy: the repository may have none of it any more
                done = prune(
                    repository,
                    make_policy(**rule),
                    zone=schedule.timezone,
                    source=f"{kind}/{identity}",
                    removable=ours,
                )
                kept, removed = kept + done.kept, removed + done.removed
        listing = _listing(tools, storage.id, repository)
    return Done({"kept": kept, "removed": removed}, record=listing.record)


def run_gc(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Give back what no backup needs, then make the catalog say what is left."""
    with tools.repository(job.storage_backend_id) as (storage, repository):
        done = collect(repository, progress=progress)
        listing = _listing(tools, storage.id, repository)
    return Done(_plain(done), record=listing.record)


def run_rebuild(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Make the catalog's rows of backups from the repository alone."""
    progress.start(None, "reading the repository's list of backups")
    with tools.repository(job.storage_backend_id) as (storage, repository):
        listing = _listing(tools, storage.id, repository)
    return Done(
        {"backups": len(listing.rows)},
        tuple(f"{path}: {wrong}" for path, wrong in listing.unreadable.items()),
        record=listing.record,
    )


def run_delete(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Mark a backup as deleted; until the grace period ends that can be undone."""
    del progress
    row: BackupRow = tools.row(BackupRow, job.details["backup"], "backup")
    with tools.repository(row.storage_backend_id) as (storage, repository):
        gone = delete(repository, row.backup_id)
    return Done({"backup": row.backup_id}, record=lambda session: _store_all(session, storage.id, [gone]))


def run_usage(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Ask a storage how full it is."""
    del progress
    with tools.repository(job.storage_backend_id) as (storage, repository):
        usage = repository.storage.get_usage()
    used, capacity = usage.used, usage.total

    def record(session: Session) -> None:
        row = session.get_one(Storage, storage.id)
        now = datetime.now(UTC)
        row.used, row.capacity, row.seen_at, row.problem = used, capacity, now, None
        if used is not None:
            keep_sample(session, storage.id, now.date(), used)

    free = usage.free if usage.free is not None else None if capacity is None else capacity - used
    taken = None if free is None or not capacity else 100 - free * 100 // capacity
    full = f"{storage.name} is {taken} % full" if taken is not None and taken >= storage.threshold else None
    return Done({"used": used, "capacity": capacity, "free": free}, (full,) if full else (), record=record)


def run_inventory(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Ask a host what runs on it."""
    del progress
    table = KvmHost if job.details["host_type"] == "kvm" else PodmanHost
    host = tools.row(table, job.details["host"], "host")
    try:
        found: dict[str, list[Any]] = {}
        if table is KvmHost:
            found["vm"] = list(inventory.list_vms(host.uri))
        else:
            there = inventory.list_all(host.uri)
            found |= {"container": there.containers, "pod": there.pods, "volume": there.volumes}
    except LabBackupError as error:
        with tools.sessions() as session:
            set_problem(session, table, host.id, error.message)
            session.commit()
        raise

    def record(session: Session) -> None:
        now = datetime.now(UTC)
        for kind, rows in found.items():
            replace_sources(session, kind, host.id, [asdict(row) for row in rows], now)
        host_answered(session, table, host.id, now)

    return Done({f"{kind}s": len(rows) for kind, rows in found.items()}, record=record)


MARKS: Mapping[str, Callable[[Repository, str], BackupSummary]] = {
    "protect": protect,
    "unprotect": unprotect,
    "undelete": undelete,
    "archive": archive,
    "unarchive": unarchive,
}


def run_mark(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Protect a backup, take its protection away, or take its deletion back."""
    del progress
    row: BackupRow = tools.row(BackupRow, job.details["backup"], "backup")
    with tools.repository(row.storage_backend_id) as (storage, repository):
        made = MARKS[job.details["mark"]](repository, row.backup_id)
    return Done({"backup": row.backup_id}, record=lambda session: _store_all(session, storage.id, [made]))


def run_replicate(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Copy all backups of a storage that another one does not have."""
    target = UUID(job.details["to"])
    with tools.repository(job.storage_backend_id) as (_, here), tools.repository(target) as (storage, there):
        done = replicate(here, there, backups=tuple(job.details.get("backups") or ()), progress=progress)
        listing = _listing(tools, storage.id, there)
    if done.failed:
        raise LabBackupError(
            f"{len(done.failed)} backups were not copied: {done.failed[0].error}",
            hint="mend what is said, and run it again: what is there is not copied twice",
        )
    return Done({"copied": len(done.copied)}, record=listing.record)


def run_notify(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Tell through a channel what is to be told, in one message, so that a bad night is one mail and not a hundred."""
    del progress
    channel: NotificationConfig = tools.row(NotificationConfig, job.details["channel"], "channel")
    place = f"channel/{channel.id}"
    with tools.sessions() as session:
        news = unsent(session, channel.id)
    if not news:
        return Done({"sent": 0})
    worst = max((row.severity for row in news), key=SEVERITIES.index)
    subject = news[0].subject if len(news) == 1 else f"{len(news)} messages, the newest: {news[-1].subject}"
    text = "\n\n".join(
        f"{row.created_at:%Y-%m-%d %H:%M} UTC  {row.subject}\n{row.message}" for row in news[-MOST_NEWS:]
    )
    try:
        send(
            channel.type,
            unseal(tools.master_key, channel.address, place=place),
            Message(f"Lab Backup: {subject}", text, worst),
            secret=unseal(tools.master_key, channel.secret, place=place),
            trusted=bool(channel.config.get("trusted")),
        )
    except LabBackupError as error:
        with tools.sessions() as session:
            session.get_one(NotificationConfig, channel.id).problem = error.message
            session.commit()
        raise
    told = [row.id for row in news]
    return Done({"sent": len(told)}, record=lambda session: mark_sent(session, told, channel.id, datetime.now(UTC)))


def run_housekeeping(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Forget logs, ended jobs and news that are older than they are to be kept."""
    del job
    progress.start(None, "forgetting what is old")
    with tools.sessions() as session:
        return Done(forget_old(session, read_preferences(session), datetime.now(UTC)))


def run_report(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Tell what happened in the last week, to all who want to know of everything."""
    del job
    progress.start(None, "looking back at the week")
    with tools.sessions() as session:
        lines = week(session, datetime.now(UTC) - timedelta(days=7))

    def record(session: Session) -> None:
        tell(session, kind="weekly report", severity="info", subject="the last week", message="\n".join(lines))

    return Done({"lines": lines}, record=record)


def run_heartbeat(job: Job, tools: Tools, progress: JobProgress) -> Done:
    """Tell a watcher outside that beat, queue and workers live: silence then says that they do not."""
    del job, progress
    with tools.sessions() as session:
        address = read_preferences(session).heartbeat_url
    if address:
        ping(address)
    return Done({"told": bool(address)})


TASKS: Mapping[str, Callable[[Job, Tools, JobProgress], Done]] = {
    "backup": run_backup,
    "schedule": run_schedule,
    "restore": run_restore,
    "verify": run_verify,
    "prune": run_prune,
    "gc": run_gc,
    "rebuild-catalog": run_rebuild,
    "delete": run_delete,
    "mark": run_mark,
    "replicate": run_replicate,
    "notify": run_notify,
    "housekeeping": run_housekeeping,
    "heartbeat": run_heartbeat,
    "report": run_report,
    "usage": run_usage,
    "inventory": run_inventory,
}
