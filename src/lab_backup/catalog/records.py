"""What workers and beat read and write besides jobs: backups, hosts with what runs on them, schedules, settings."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypedDict, get_args
from uuid import UUID, uuid4

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from lab_backup.catalog.people import Setting
from lab_backup.catalog.places import KvmHost, PodmanHost, Storage, StorageSample
from lab_backup.catalog.sources import GONE, KINDS
from lab_backup.catalog.work import BackupRow, Firing, Schedule


def store_backup(session: Session, values: Mapping[str, Any]) -> None:
    """Add or renew the row of a backup, named by its storage and backup_id. The caller commits."""
    kept = {"storage_backend_id", "backup_id", "schedule_id"}
    table = BackupRow.__table__
    session.execute(
        insert(table)  # type: ignore[arg-type]  # by the names of columns, as `metadata` is the name of something else in a class
        .values(id=uuid4(), **values)
        .on_conflict_do_update(
            index_elements=["storage_backend_id", "backup_id"],
            set_={key: value for key, value in values.items() if key not in kept}
            # Who lists a repository does not know which schedule made a backup: what is known stays.
            | {"schedule_id": func.coalesce(table.c.schedule_id, values.get("schedule_id"))},
        )
    )


def known_backups(session: Session, storage: UUID) -> set[str]:
    """Return the ids of the backups that the catalog says are in a storage."""
    return set(session.scalars(select(BackupRow.backup_id).where(BackupRow.storage_backend_id == storage)))


def forget_backups(session: Session, storage: UUID, gone: Iterable[str]) -> None:
    """Remove the rows of backups that the repository does not have any more. The caller commits."""
    session.execute(
        delete(BackupRow).where(BackupRow.storage_backend_id == storage, BackupRow.backup_id.in_(list(gone)))
    )


def replace_sources(session: Session, kind: str, host: UUID, found: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Make the table of a kind say what is on the host. Rows keep their ids, for schedules refer to them; what is gone stays, as `gone`. The caller commits."""
    table, column = KINDS[kind].table, KINDS[kind].host
    key = "uuid" if kind == "vm" else "name"
    for values in found:
        row = {**values, column.key: host, "seen_at": now}
        session.execute(insert(table).values(**row).on_conflict_do_update(index_elements=[column.key, key], set_=row))
    session.execute(update(table).where(column == host, table.seen_at < now).values(state=GONE))


def host_answered(session: Session, table: type[KvmHost | PodmanHost], host: UUID, now: datetime) -> None:
    """Note that a host was asked and answered. The caller commits."""
    session.execute(update(table).where(table.id == host).values(seen_at=now, problem=None))


def keep_sample(session: Session, storage: UUID, day: date, used: int) -> None:
    """Note how full a storage is; of a day the last word counts. The caller commits."""
    statement = insert(StorageSample).values(storage_id=storage, day=day, used=used)
    session.execute(statement.on_conflict_do_update(index_elements=["storage_id", "day"], set_={"used": used}))


def set_problem(
    session: Session, table: type[KvmHost | PodmanHost | Storage], place: UUID, problem: str | None
) -> None:
    """Note why a host or storage cannot be reached. The caller commits."""
    session.execute(update(table).where(table.id == place).values(problem=problem))


def enabled(session: Session, table: type[Any]) -> Sequence[Any]:
    """Return the rows of hosts, storages or schedules that are switched on."""
    return session.scalars(select(table).where(table.enabled).order_by(table.name)).all()


Rule = Literal["last", "hourly", "daily", "weekly", "monthly", "yearly"]
RULES: tuple[Rule, ...] = get_args(Rule)


class Rules(TypedDict):
    """How many backups of each period stay."""

    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int


def retention_of(session: Session, storage: UUID, kind: str, identity: str) -> Rules | None:
    """Return the rules for a source's backups in a storage: the most generous of all schedules that made some of them. None: one of them keeps everything."""
    made = select(BackupRow.schedule_id).where(
        BackupRow.storage_backend_id == storage,
        BackupRow.source_type == kind,
        BackupRow.source_id == identity,
        BackupRow.schedule_id.is_not(None),
    )
    found = Rules(last=0, hourly=0, daily=0, weekly=0, monthly=0, yearly=0)
    for row in session.scalars(select(Schedule).where(Schedule.id.in_(made))):
        if not any(row.retention_config.values()):
            return None
        for name in RULES:
            found[name] = max(found[name], int(row.retention_config.get(name, 0)))
    return found


def sources_of(session: Session, schedule: Schedule) -> list[tuple[str, str]]:
    """Return kind and identity of what a schedule has backed up: names alone could mean another host's as well."""
    made = select(BackupRow.source_type, BackupRow.source_id).where(
        BackupRow.schedule_id == schedule.id, BackupRow.storage_backend_id == schedule.storage_backend_id
    )
    return [(kind, identity) for kind, identity in session.execute(made.distinct())]


def removable(session: Session, storage: UUID, kind: str, identity: str) -> set[str]:
    """Return the backups of a source that retention may remove: those that schedules made which are there still. What people made by hand stays."""
    made = select(BackupRow.backup_id).where(
        BackupRow.storage_backend_id == storage,
        BackupRow.source_type == kind,
        BackupRow.source_id == identity,
        BackupRow.schedule_id.in_(select(Schedule.id)),
    )
    return set(session.scalars(made))


def fire(session: Session, schedule: Schedule, due_at: datetime) -> bool:
    """Note that a schedule was due then; False where somebody has noted it already. The caller commits."""
    made = session.execute(
        insert(Firing)
        .values(schedule_id=schedule.id, due_at=due_at)
        .on_conflict_do_nothing()
        .returning(Firing.schedule_id)
    ).one_or_none()
    return made is not None


def period_over(session: Session, name: str, interval: timedelta, now: datetime, *, at_once: bool = True) -> bool:
    """Whether `interval` has passed since this was last true of `name`; if so, it begins anew. The first time it is `at_once`, or begins. The caller commits."""
    row = session.get(Setting, name, with_for_update=True)
    if row is None:
        session.add(Setting(name=name, value={"at": now.isoformat()}))
        return at_once
    if now - datetime.fromisoformat(row.value["at"]) < interval:
        return False
    row.value = {"at": now.isoformat()}
    return True
