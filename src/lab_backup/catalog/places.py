"""Hosts with what runs on them, and storages."""

from datetime import date, datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from lab_backup.catalog.base import Base, Json, Row


class KvmHost(Row):
    """A libvirt host, reached at `uri`; `at_once` jobs run on it, 0: as many as come. `problem` says why it could not be asked the last time."""

    __tablename__ = "kvm_hosts"

    name: Mapped[str] = mapped_column(unique=True)
    uri: Mapped[str]
    username: Mapped[str] = mapped_column(default="")
    auth_type: Mapped[str] = mapped_column(default="none")
    config: Mapped[Json] = mapped_column(default=dict)
    enabled: Mapped[bool] = mapped_column(default=True)
    at_once: Mapped[int] = mapped_column(default=0, server_default="0")
    seen_at: Mapped[datetime | None]
    problem: Mapped[str | None]


class Vm(Row):
    """A VM as its host was last seen. `memory` and `disk_size` in bytes."""

    __tablename__ = "vms"
    __table_args__ = (UniqueConstraint("kvm_host_id", "uuid"),)

    kvm_host_id: Mapped[UUID] = mapped_column(ForeignKey("kvm_hosts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    uuid: Mapped[str]
    vcpus: Mapped[int]
    memory: Mapped[int] = mapped_column(BigInteger)
    disk_size: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str]
    seen_at: Mapped[datetime]


class PodmanHost(Row):
    """A Podman service, reached at `uri`; `at_once` as of a libvirt host."""

    __tablename__ = "podman_hosts"

    name: Mapped[str] = mapped_column(unique=True)
    uri: Mapped[str]
    config: Mapped[Json] = mapped_column(default=dict)
    enabled: Mapped[bool] = mapped_column(default=True)
    at_once: Mapped[int] = mapped_column(default=0, server_default="0")
    seen_at: Mapped[datetime | None]
    problem: Mapped[str | None]


class Container(Row):
    """A container as its host was last seen."""

    __tablename__ = "containers"
    __table_args__ = (UniqueConstraint("podman_host_id", "name"),)

    podman_host_id: Mapped[UUID] = mapped_column(ForeignKey("podman_hosts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    container_id: Mapped[str]
    image: Mapped[str]
    pod: Mapped[str] = mapped_column(default="", server_default="")
    state: Mapped[str]
    seen_at: Mapped[datetime]


class Pod(Row):
    """A pod as its host was last seen. `containers` is how many it has, without the one that holds it together."""

    __tablename__ = "pods"
    __table_args__ = (UniqueConstraint("podman_host_id", "name"),)

    podman_host_id: Mapped[UUID] = mapped_column(ForeignKey("podman_hosts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    pod_id: Mapped[str]
    containers: Mapped[int]
    state: Mapped[str]
    seen_at: Mapped[datetime]


class Volume(Row):
    """A named volume as its host was last seen; its state is `present`, or `gone`."""

    __tablename__ = "volumes"
    __table_args__ = (UniqueConstraint("podman_host_id", "name"),)

    podman_host_id: Mapped[UUID] = mapped_column(ForeignKey("podman_hosts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    driver: Mapped[str]
    state: Mapped[str]
    seen_at: Mapped[datetime]


class StorageSample(Base):
    """How many bytes a storage held at the end of a day (UTC)."""

    __tablename__ = "storage_samples"

    storage_id: Mapped[UUID] = mapped_column(ForeignKey("storage_backends.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    used: Mapped[int] = mapped_column(BigInteger)


class SourceTag(Base):
    """A word that somebody gave to a source, by which schedules choose. `source_id` is that of its row."""

    __tablename__ = "source_tags"

    source_type: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[UUID] = mapped_column(primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True, index=True)


class WorkerRow(Base):
    """A worker process of some host, as it was last heard. `figures` has what its host is at: load, memory and space."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    version: Mapped[str]
    queues: Mapped[list[str]] = mapped_column(default=list)
    slots: Mapped[int]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(index=True)
    figures: Mapped[Json] = mapped_column(default=dict)


class Storage(Row):
    """A repository and where it is. `passphrase` (None without encryption) and `credentials` (None where it needs none of its own) are sealed; sizes in bytes, `threshold` in percent. `at_once` jobs use it, 0: as many as come."""

    __tablename__ = "storage_backends"

    name: Mapped[str] = mapped_column(unique=True)
    type: Mapped[str]
    url: Mapped[str] = mapped_column(unique=True)
    repository_id: Mapped[str] = mapped_column(unique=True)
    config: Mapped[Json] = mapped_column(default=dict)
    passphrase: Mapped[str | None]
    credentials: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    at_once: Mapped[int] = mapped_column(default=0, server_default="0")
    capacity: Mapped[int | None] = mapped_column(BigInteger)
    used: Mapped[int | None] = mapped_column(BigInteger)
    threshold: Mapped[int] = mapped_column(default=80)
    seen_at: Mapped[datetime | None]
    problem: Mapped[str | None]
