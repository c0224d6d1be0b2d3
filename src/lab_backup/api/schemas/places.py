"""Hosts, what runs on them, and storages."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
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
Uri = Annotated[
    str,
    Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x20]+$", examples=["qemu+ssh://root@kvm7/system"]),
    NoPassword,
]
Percent = Annotated[int, Field(ge=1, le=100)]
AtOnce = Annotated[int, Field(ge=0, le=1024, description="How many jobs run there at once; 0: as many as come")]


class HostCreate(Body):
    """A host. `uri` as libvirt or Podman write it: `qemu:///system`, `qemu+ssh://root@kvm7/system`, `unix:///run/podman/podman.sock`."""

    name: Name
    uri: Uri
    enabled: bool = True
    at_once: AtOnce = 0


class HostUpdate(Body):
    """What changes of a host; null: it stays."""

    name: Name | None = None
    uri: Uri | None = None
    enabled: bool | None = None
    at_once: AtOnce | None = None


class HostShown(Shown):
    """A host. `problem` says why it could not be asked the last time."""

    id: UUID
    name: str
    uri: str
    enabled: bool
    at_once: int
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
    pod: str
    state: str
    seen_at: datetime


class PodShown(Shown):
    """A pod as its host was last seen. `containers`: how many, without the one that holds it together."""

    id: UUID
    podman_host_id: UUID
    name: str
    pod_id: str
    containers: int
    state: str
    seen_at: datetime


class VolumeShown(Shown):
    """A named volume as its host was last seen."""

    id: UUID
    podman_host_id: UUID
    name: str
    driver: str
    state: str
    seen_at: datetime


class Tags(Body):
    """All tags of a source: those that it had before and that are not here are taken away."""

    tags: Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")]], Field(max_length=20)]


class TaggedShown(Shown):
    """A source with a tag."""

    source_type: str
    source_id: UUID
    tag: str


class WorkerShown(Shown):
    """A worker process as it was last heard. `alive`: within the last minute; `same_version`: as this service. Figures in bytes."""

    name: str
    host: str
    version: str
    same_version: bool
    alive: bool
    queues: list[str]
    slots: int
    started_at: datetime
    seen_at: datetime
    figures: dict[str, Any]


class StorageCredentials(Body):
    """What opens a bucket (`access_key` and `secret_key`) or a share (`password`). Each may be `vault:MOUNT/PATH#FIELD`, which is read at use."""

    access_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    password: Secret | None = None


class StorageCreate(Body):
    """A storage: a new repository at `url`, or with `existing` one that is there already. `passphrase` null: not encrypted.

    The passphrase may be `vault:MOUNT/PATH#FIELD`, which is read at use.
    """

    name: Name
    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1000,
            pattern=r"^[^\x00-\x1f]+$",
            examples=["s3://backups/lab?endpoint=https://s3.example.org"],
        ),
        NoPassword,
    ]
    passphrase: Secret | None
    credentials: StorageCredentials | None = None
    existing: bool = False
    chunk_size: Annotated[int, Field(ge=4096, le=16 * 1024 * 1024)] = 131072
    compression: Annotated[str, Field(max_length=20)] = "zstd:3"
    threshold: Percent = 80
    at_once: AtOnce = 0


class StorageUpdate(Body):
    """What changes of a storage; null: it stays. New credentials and a new passphrase are tried before they are kept."""

    name: Name | None = None
    credentials: StorageCredentials | None = None
    passphrase: Secret | None = None
    enabled: bool | None = None
    threshold: Percent | None = None
    at_once: AtOnce | None = None


class StorageCheck(Shown):
    """One thing that was tried with a storage."""

    name: str
    outcome: Literal["ok", "warning", "failed"]
    detail: str
    hint: str | None


class StorageTest(Shown):
    """What a live test of a storage found."""

    ok: bool
    checks: list[StorageCheck]


class KeyShown(Shown):
    """A way to open a repository, without the key."""

    id: str
    kind: str
    label: str
    created: str


class KeyCreate(Body):
    """Another passphrase that is to open the repository."""

    passphrase: Secret
    label: Name


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
    has_credentials: bool
    enabled: bool
    capacity: int | None
    used: int | None
    threshold: int
    at_once: int
    created_at: datetime
    seen_at: datetime | None
    problem: str | None


class SampleShown(Shown):
    """How many bytes a storage held at the end of a day (UTC)."""

    day: date
    used: int


class Usage(Shown):
    """How full a storage was when it was last asked, in bytes; null where it does not tell.

    `history` are the last ninety days; `growth` bytes a day; `full_on` the day when it is full if it goes on so, null where that is not in sight.
    """

    used: int | None
    capacity: int | None
    threshold: int
    seen_at: datetime | None
    history: list[SampleShown]
    growth: float | None
    full_on: date | None


class Sheet(Shown):
    """A recovery sheet to print. Whoever has it and the storage can read every backup."""

    text: str
