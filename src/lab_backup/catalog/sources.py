"""What there is to back up: the four kinds of sources, and which of them a schedule means."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from lab_backup.catalog.places import Container, KvmHost, Pod, PodmanHost, SourceTag, Vm, Volume
from lab_backup.catalog.work import Schedule

GONE = "gone"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source: what it is called, its table, the table of its hosts, and the column that names the host."""

    word: str
    table: type[Any]
    hosts: type[Any]
    host: Any


KINDS = {
    "vm": Kind("VM", Vm, KvmHost, Vm.kvm_host_id),
    "container": Kind("container", Container, PodmanHost, Container.podman_host_id),
    "pod": Kind("pod", Pod, PodmanHost, Pod.podman_host_id),
    "volume": Kind("volume", Volume, PodmanHost, Volume.podman_host_id),
}
GROUPS = ("kvm_host", "podman_host", "tag", "all")


@dataclass(frozen=True, slots=True)
class Source:
    """A source by its row, as people call it, and the row of its host."""

    kind: str
    id: UUID
    name: str
    host: UUID


def source_of(kind: str, row: Any) -> Source:
    """Return the source that a row of a kind is."""
    return Source(kind, row.id, row.name, getattr(row, KINDS[kind].host.key))


def there(kind: str, host: UUID | None = None) -> Select[Any]:
    """Return the rows of a kind that are not gone, of one host or of all."""
    table = KINDS[kind].table
    statement = select(table).where(table.state != GONE)
    return statement if host is None else statement.where(KINDS[kind].host == host)


def members(session: Session, schedule: Schedule) -> list[Source]:
    """Return what a schedule backs up now: of hosts and tags also what came since it was made.

    A source that is named by itself is returned also when it is gone, so that its absence is noticed.
    """
    if schedule.source_type in KINDS:
        row = session.get(KINDS[schedule.source_type].table, schedule.source_id)
        return [] if row is None else [source_of(schedule.source_type, row)]
    return sorted(set(_group(session, schedule)), key=lambda source: (source.kind, source.name, source.id))


def _group(session: Session, schedule: Schedule) -> Iterator[Source]:
    match schedule.source_type:
        case "kvm_host":
            yield from _of(session, "vm", there("vm", schedule.source_id))
        case "podman_host":
            yield from _whole(session, schedule.source_id)
        case "all":
            yield from _of(session, "vm", there("vm"))
            yield from _whole(session, None)
        case "tag":
            for kind, meant in KINDS.items():
                tagged = select(SourceTag.source_id).where(
                    SourceTag.source_type == kind, SourceTag.tag == schedule.source_tag
                )
                yield from _of(session, kind, there(kind).where(meant.table.id.in_(tagged)))


def _whole(session: Session, host: UUID | None) -> Iterator[Source]:
    """Return all pods, and all containers that are in none: volumes come with what mounts them."""
    yield from _of(session, "pod", there("pod", host))
    yield from _of(session, "container", there("container", host).where(Container.pod == ""))


def _of(session: Session, kind: str, statement: Select[Any]) -> Iterator[Source]:
    for row in session.scalars(statement):
        yield source_of(kind, row)


def name_of(session: Session, schedule: Schedule) -> str:
    """Return what people call what a schedule backs up."""
    match schedule.source_type:
        case "tag":
            return f"all with the tag {schedule.source_tag}"
        case "all":
            return "all sources"
        case "kvm_host" | "podman_host":
            hosts: type[Any] = KvmHost if schedule.source_type == "kvm_host" else PodmanHost
            host = session.get(hosts, schedule.source_id)
            return "a host that is gone" if host is None else f"all on {host.name}"
        case kind:
            row: Any = session.get(KINDS[kind].table, schedule.source_id)
            return "a source that is gone" if row is None else str(row.name)
