"""Hosts, what runs on them, and storages."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field

from lab_backup.api.schemas.base import Body, Name, Secret, Shown


def _without_password(address: str) -> str:
    """Refuse a password in an address, which is shown, logged and kept in clear."""
    _, _, rest = address.partition("://")
    who, at, _ = rest.partition("/")[0].rpartition("@")
    if at and ":" in who:
        raise ValueError("an address must not hold a password")
    return address


NoPassword = AfterValidator(_without_password)
Uri = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x20]+$"), NoPassword]
Percent = Annotated[int, Field(ge=1, le=100)]


class HostCreate(Body):
    """A host. `uri` as libvirt or Podman write it: `qemu:///system`, `qemu+ssh://root@kvm7/system`, `unix:///run/podman/podman.sock`."""

    name: Name
    uri: Uri
    enabled: bool = True


class HostUpdate(Body):
    """What changes of a host; null: it stays."""

    name: Name | None = None
    uri: Uri | None = None
    enabled: bool | None = None


class HostShown(Shown):
    """A host. `problem` says why it could not be asked the last time."""

    id: UUID
    name: str
    uri: str
    enabled: bool
    created_at: datetime
    seen_at: datetime | None
    problem: str | None


class HostTest(Shown):
    """Whether a host answers now, and how many VMs or containers it has."""

    ok: bool
    found: int | None = None
    detail: str | None = None
    hint: str | None = None


class VmShown(Shown):
    """A VM as its host was last seen; memory and disks in bytes."""

    id: UUID
    kvm_host_id: UUID
    name: str
    uuid: str
    vcpus: int
    memory: int
    disk_size: int
    state: str
    seen_at: datetime


class ContainerShown(Shown):
    """A container as its host was last seen."""

    id: UUID
    podman_host_id: UUID
    name: str
    container_id: str
    image: str
    state: str
    seen_at: datetime


class StorageCreate(Body):
    """A storage: a new repository at `url`, or with `existing` one that is there already. `passphrase` null: not encrypted."""

    name: Name
    url: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]+$"), NoPassword]
    passphrase: Secret | None
    existing: bool = False
    chunk_size: Annotated[int, Field(ge=4096, le=16 * 1024 * 1024)] = 131072
    compression: Annotated[str, Field(max_length=20)] = "zstd:3"
    threshold: Percent = 80


class StorageUpdate(Body):
    """What changes of a storage; null: it stays."""

    name: Name | None = None
    enabled: bool | None = None
    threshold: Percent | None = None


class ReplicateCreate(Body):
    """Where to copy backups to."""

    to: UUID


class StorageShown(Shown):
    """A storage. Sizes in bytes; `problem` says why it could not be opened the last time."""

    id: UUID
    name: str
    type: str
    url: str
    repository_id: str
    encrypted: bool
    enabled: bool
    capacity: int | None
    used: int | None
    threshold: int
    created_at: datetime
    seen_at: datetime | None
    problem: str | None


class Usage(Shown):
    """How full a storage was when it was last asked, in bytes; null where it does not tell."""

    used: int | None
    capacity: int | None
    threshold: int
    seen_at: datetime | None


class Sheet(Shown):
    """A recovery sheet to print. Whoever has it and the storage can read every backup."""

    text: str
