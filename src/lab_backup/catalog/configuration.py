"""What the service was set up with, as one document that people keep under version control: hosts, storages, schedules, tags, settings.

Everything goes by name. There are no secrets in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from lab_backup.catalog.places import KvmHost, PodmanHost, SourceTag, Storage
from lab_backup.catalog.preferences import Preferences, read_preferences, write_preferences
from lab_backup.catalog.sources import KINDS
from lab_backup.catalog.work import Schedule
from lab_backup.errors import NotFoundError, UsageError
from lab_backup.policy.cron import check_cron, parse_zone

VERSION = 1
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
HOSTS: dict[str, type[Any]] = {"kvm": KvmHost, "podman": PodmanHost}


class Host(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A host."""

    name: Name
    kind: Literal["kvm", "podman"]
    uri: str
    enabled: bool = True
    at_once: Count = 0


class Place(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A storage that the service has already: it is made or taken by the API, which opens it."""

    name: Name
    url: str
    enabled: bool = True
    threshold: Annotated[int, msgspec.Meta(ge=1, le=100)] = 80
    at_once: Count = 0


class Kept(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many backups of each period stay; all 0: every one."""

    last: Count = 0
    hourly: Count = 0
    daily: Count = 7
    weekly: Count = 4
    monthly: Count = 12
    yearly: Count = 5


class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A schedule. `covers`: `vm/HOST/NAME` and so on, `kvm_host/NAME`, `podman_host/NAME`, `tag/TAG`, or `all`."""

    name: Name
    covers: str
    cron: str
    storage: Name
    timezone: str = "UTC"
    retention: Kept = msgspec.field(default_factory=Kept)
    enabled: bool = True
    verify_after: bool = False
    replicate_to: str | None = None
    jitter_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0


class Tagged(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The tags of a source, `vm/HOST/NAME` and so on."""

    source: str
    tags: list[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}\Z")]]


class Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All of it. A part that is null is left as it is; a list that is there is the whole list: what it does not name is removed, but for storages and hosts."""

    version: Literal[1] = 1
    hosts: list[Host] | None = None
    storages: list[Place] | None = None
    schedules: list[Plan] | None = None
    tags: list[Tagged] | None = None
    settings: Preferences | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Something that differs: `what` is `added`, `changed` or `removed`."""

    part: str
    name: str
    what: str
    fields: tuple[str, ...] = ()


def parse(data: Any) -> Document:
    """Return the document that plain values (of JSON or YAML) describe. Raises UsageError that says what is wrong where."""
    try:
        return msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        raise UsageError(f"this is no configuration: {error}", hint="compare it with an export") from error


def export(session: Session) -> Document:
    """Return what is set up."""
    storages = {row.id: row for row in session.scalars(select(Storage).order_by(Storage.name))}
    return Document(
        hosts=sorted(
            (
                Host(name=row.name, kind=kind, uri=row.uri, enabled=row.enabled, at_once=row.at_once)  # type: ignore[arg-type]  # one of HOSTS
                for kind, table in HOSTS.items()
                for row in session.scalars(select(table))
            ),
            key=lambda host: (host.kind, host.name),
        ),
        storages=[
            Place(name=row.name, url=row.url, enabled=row.enabled, threshold=row.threshold, at_once=row.at_once)
            for row in storages.values()
        ],
        schedules=[
            Plan(
                name=row.name,
                covers=_covered(session, row),
                cron=row.cron_expression,
                storage=storages[row.storage_backend_id].name,
                timezone=row.timezone,
                retention=msgspec.convert(row.retention_config, Kept),
                enabled=row.enabled,
                verify_after=row.verify_after,
                replicate_to=None if row.replicate_to is None else storages[row.replicate_to].name,
                jitter_seconds=row.jitter_seconds,
            )
            for row in session.scalars(select(Schedule).order_by(Schedule.name))
        ],
        tags=sorted(_tags(session), key=lambda tagged: tagged.source),
        settings=read_preferences(session),
    )


def apply(session: Session, wanted: Document) -> list[Change]:
    """Make it so, and return what was changed; applied again, nothing is. The caller commits, or rolls back to have seen only what would be done.

    Raises NotFoundError for what it names and is not there, UsageError.
    """
    before = export(session)
    if wanted.hosts is not None:
        for host in wanted.hosts:
            _put_host(session, host)
    session.flush()
    for place in wanted.storages or ():
        row = _by_name(session, Storage, place.name, "storage")
        if row.url != place.url:
            raise UsageError(
                f"the storage {place.name} is at {row.url}, not at {place.url}",
                hint="a storage is not moved by a document: add the other one by the API, under another name",
            )
        row.enabled, row.threshold, row.at_once = place.enabled, place.threshold, place.at_once
    if wanted.tags is not None:
        _put_tags(session, wanted.tags)
    if wanted.schedules is not None:
        _put_schedules(session, wanted.schedules)
    if wanted.settings is not None:
        write_preferences(session, wanted.settings)
    session.flush()
    return differences(before, export(session))


def differences(before: Document, after: Document) -> list[Change]:
    """Return what differs between two documents."""
    found: list[Change] = []
    for part in ("hosts", "storages", "schedules", "tags"):
        old, new = ({_key(item): item for item in getattr(document, part) or ()} for document in (before, after))
        found += [Change(part, name, "added") for name in sorted(new.keys() - old.keys())]
        found += [Change(part, name, "removed") for name in sorted(old.keys() - new.keys())]
        found += [
            Change(part, name, "changed", _fields(old[name], new[name]))
            for name in sorted(old.keys() & new.keys())
            if old[name] != new[name]
        ]
    if before.settings != after.settings:
        found.append(Change("settings", "settings", "changed", _fields(before.settings, after.settings)))
    return found


def _key(item: Any) -> str:
    if isinstance(item, Host):
        return f"{item.kind}/{item.name}"
    return str(item.source if isinstance(item, Tagged) else item.name)


def _fields(old: Any, new: Any) -> tuple[str, ...]:
    names = (new if new is not None else old).__struct_fields__
    return tuple(name for name in names if getattr(old, name, None) != getattr(new, name, None))


def _by_name(session: Session, table: type[Any], name: str, what: str) -> Any:
    row = session.scalars(select(table).where(table.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no {what} {name}",
            hint="add it by the API first, which asks for its passphrase" if table is Storage else None,
        )
    return row


def _put_host(session: Session, host: Host) -> None:
    table = HOSTS[host.kind]
    row = session.scalars(select(table).where(table.name == host.name)).one_or_none()
    if row is None:
        row = table(name=host.name, uri=host.uri)
        session.add(row)
    row.uri, row.enabled, row.at_once = host.uri, host.enabled, host.at_once


def _covered(session: Session, schedule: Schedule) -> str:
    match schedule.source_type:
        case "all":
            return "all"
        case "tag":
            return f"tag/{schedule.source_tag}"
        case "kvm_host" | "podman_host":
            table: type[Any] = KvmHost if schedule.source_type == "kvm_host" else PodmanHost
            host = session.get(table, schedule.source_id)
            return f"{schedule.source_type}/{schedule.source_id if host is None else host.name}"
        case kind:
            return _source(session, kind, schedule.source_id)


def _source(session: Session, kind: str, identity: UUID | None) -> str:
    meant = KINDS[kind]
    row: Any = session.get(meant.table, identity)
    if row is None:
        return f"{kind}/{identity}"
    host: Any = session.get(meant.hosts, getattr(row, meant.host.key))
    return f"{kind}/{host.name}/{row.name}"


def _found(session: Session, text: str) -> tuple[str, UUID]:
    """Return kind and row of the source `KIND/HOST/NAME`. Raises UsageError, NotFoundError."""
    kind, _, rest = text.partition("/")
    host, _, name = rest.partition("/")
    if kind not in KINDS or not name:
        raise UsageError(f"{text!r} names no source", hint="write vm/HOST/NAME, container/HOST/NAME, pod/… or volume/…")
    meant = KINDS[kind]
    place = _by_name(session, meant.hosts, host, "host")
    row = session.scalars(select(meant.table).where(meant.host == place.id, meant.table.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no {meant.word} {name} on {host}", hint="it must have been seen there once")
    return kind, row.id


def _tags(session: Session) -> Iterator[Tagged]:
    rows: dict[str, list[str]] = {}
    for row in session.scalars(select(SourceTag).order_by(SourceTag.tag)):
        rows.setdefault(_source(session, row.source_type, row.source_id), []).append(row.tag)
    return (Tagged(source=source, tags=tags) for source, tags in rows.items())


def _put_tags(session: Session, wanted: list[Tagged]) -> None:
    chosen = {(*_found(session, item.source), tag) for item in wanted for tag in item.tags}
    for row in session.scalars(select(SourceTag)).all():
        if (row.source_type, row.source_id, row.tag) not in chosen:
            session.delete(row)
        chosen.discard((row.source_type, row.source_id, row.tag))
    session.add_all(SourceTag(source_type=kind, source_id=source, tag=tag) for kind, source, tag in chosen)


def _put_schedules(session: Session, wanted: list[Plan]) -> None:
    if len({plan.name for plan in wanted}) != len(wanted):
        raise UsageError("two schedules have the same name")
    rows = {row.name: row for row in session.scalars(select(Schedule))}
    for name in rows.keys() - {plan.name for plan in wanted}:
        session.delete(rows[name])
    for plan in wanted:
        kind, source, tag = _meant(session, plan.covers)
        storage = _by_name(session, Storage, plan.storage, "storage").id
        copy_to = None if plan.replicate_to is None else _by_name(session, Storage, plan.replicate_to, "storage").id
        if copy_to == storage:
            raise UsageError(f"{plan.name} copies to the storage that its backups are in", hint="choose another one")
        parse_zone(plan.timezone)
        check_cron(plan.cron)
        values = {
            "source_type": kind,
            "source_id": source,
            "source_tag": tag,
            "cron_expression": plan.cron,
            "timezone": plan.timezone,
            "retention_config": msgspec.to_builtins(plan.retention),
            "storage_backend_id": storage,
            "enabled": plan.enabled,
            "verify_after": plan.verify_after,
            "replicate_to": copy_to,
            "jitter_seconds": plan.jitter_seconds,
        }
        row = rows.get(plan.name)
        if row is None:
            session.add(Schedule(id=uuid4(), name=plan.name, **values))
            continue
        for field, value in values.items():
            if getattr(row, field) != value:
                setattr(row, field, value)


def _meant(session: Session, covers: str) -> tuple[str, UUID | None, str | None]:
    kind, _, rest = covers.partition("/")
    if covers == "all":
        return "all", None, None
    if kind == "tag" and rest:
        return "tag", None, rest
    if kind in {"kvm_host", "podman_host"} and rest:
        return kind, _by_name(session, KvmHost if kind == "kvm_host" else PodmanHost, rest, "host").id, None
    word, identity = _found(session, covers)
    return word, identity, None
