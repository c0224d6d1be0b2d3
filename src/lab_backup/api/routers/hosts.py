"""Hosts of both kinds, and what runs on them."""

from collections.abc import Callable, Sized
from typing import Any
from uuid import UUID

from fastapi import APIRouter, status
from pydantic import BaseModel

from lab_backup.api.access import Actor, Audit, Audited, CanAdminister, CanRead
from lab_backup.api.context import Db
from lab_backup.api.schemas.base import InPages, Listed, Paging
from lab_backup.api.schemas.places import (
    ContainerShown,
    HostCreate,
    HostShown,
    HostTest,
    HostUpdate,
    PodShown,
    VmShown,
    VolumeShown,
)
from lab_backup.api.threads import in_thread
from lab_backup.catalog.base import AsyncSession
from lab_backup.catalog.paging import page
from lab_backup.catalog.places import Container, KvmHost, Pod, PodmanHost, Vm, Volume
from lab_backup.catalog.queries import everything, get, refuse_taken
from lab_backup.catalog.queue import new_job
from lab_backup.catalog.sources import there
from lab_backup.errors import LabBackupError
from lab_backup.operations.inventory import list_all, list_vms

router = APIRouter(tags=["hosts"])

Host = KvmHost | PodmanHost
WORDS: dict[type[Any], str] = {KvmHost: "kvm", PodmanHost: "podman"}
ASK: dict[type[Any], Callable[[str], Sized]] = {KvmHost: list_vms, PodmanHost: list_all}


async def _list(
    db: AsyncSession,
    table: type[Any],
    shown: type[BaseModel],
    paging: Paging,
    kind: str | None = None,
    host: UUID | None = None,
) -> Any:
    statement = everything(table) if kind is None else there(kind, host)
    found = await page(
        db, statement, table.created_at, table.id, cursor=paging.cursor, limit=paging.limit, order=paging.order
    )
    return Listed[Any](items=[shown.model_validate(row) for row in found.items], next=found.next)


async def _create(db: AsyncSession, table: type[Any], body: HostCreate, actor: Actor, audit: Audit) -> HostShown:
    await refuse_taken(db, table.name, body.name, "the host")
    host = table(name=body.name, uri=body.uri, enabled=body.enabled, at_once=body.at_once)
    db.add(host)
    await db.flush()
    await db.refresh(host)
    db.add(_look(table, host))
    await audit(actor, "created", f"{WORDS[table]} host", host.id, name=host.name, uri=host.uri)
    return HostShown.model_validate(host)


async def _update(
    db: AsyncSession, table: type[Any], identity: UUID, body: HostUpdate, actor: Actor, audit: Audit
) -> HostShown:
    host = await get(db, table, identity, "host")
    if body.name is not None:
        await refuse_taken(db, table.name, body.name, "the host", but=identity)
    for name in ("name", "uri", "enabled", "at_once"):
        value = getattr(body, name)
        if value is not None:
            setattr(host, name, value)
    db.add(_look(table, host))
    await audit(actor, "changed", f"{WORDS[table]} host", identity, fields=", ".join(sorted(body.model_fields_set)))
    return HostShown.model_validate(host)


async def _delete(db: AsyncSession, table: type[Any], identity: UUID, actor: Actor, audit: Audit) -> None:
    host = await get(db, table, identity, "host")
    await db.delete(host)
    await audit(actor, "deleted", f"{WORDS[table]} host", identity, name=host.name)


async def _test(db: AsyncSession, table: type[Any], identity: UUID) -> HostTest:
    host = await get(db, table, identity, "host")
    uri = host.uri
    await db.rollback()  # a host that is slow to answer holds no connection
    try:
        found = await in_thread(ASK[table], uri)
    except LabBackupError as error:
        return HostTest(ok=False, detail=error.message, hint=error.hint)
    return HostTest(ok=True, found=len(found))


def _look(table: type[Any], host: Host) -> Any:
    return new_job(
        "inventory",
        {"host_type": WORDS[table], "host": str(host.id)},
        title=f"look at {host.name}",
        lock_key=f"host/{host.id}",
        priority=5,
    )


@router.get("/kvm/hosts")
async def list_kvm_hosts(_: CanRead, db: Db, paging: InPages) -> Listed[HostShown]:
    """List libvirt hosts."""
    found: Listed[HostShown] = await _list(db, KvmHost, HostShown, paging)
    return found


@router.post("/kvm/hosts", status_code=status.HTTP_201_CREATED)
async def create_kvm_host(body: HostCreate, actor: CanAdminister, db: Db, audit: Audited) -> HostShown:
    """Add a libvirt host. Its VMs are listed in the background."""
    return await _create(db, KvmHost, body, actor, audit)


@router.get("/kvm/hosts/{host_id}")
async def show_kvm_host(host_id: UUID, _: CanRead, db: Db) -> HostShown:
    """Show a libvirt host."""
    return HostShown.model_validate(await get(db, KvmHost, host_id, "host"))


@router.put("/kvm/hosts/{host_id}")
async def update_kvm_host(host_id: UUID, body: HostUpdate, actor: CanAdminister, db: Db, audit: Audited) -> HostShown:
    """Change a libvirt host."""
    return await _update(db, KvmHost, host_id, body, actor, audit)


@router.delete("/kvm/hosts/{host_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_kvm_host(host_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> None:
    """Forget a libvirt host and its VMs. Backups of them stay."""
    await _delete(db, KvmHost, host_id, actor, audit)


@router.post("/kvm/hosts/{host_id}/test")
async def try_kvm_host(host_id: UUID, _: CanAdminister, db: Db) -> HostTest:
    """Ask a libvirt host now."""
    return await _test(db, KvmHost, host_id)


@router.get("/kvm/hosts/{host_id}/vms")
async def list_vms_of_host(host_id: UUID, _: CanRead, db: Db, paging: InPages) -> Listed[VmShown]:
    """List the VMs of a host as it was last seen; a host that is down holds up nobody."""
    await get(db, KvmHost, host_id, "host")
    found: Listed[VmShown] = await _list(db, Vm, VmShown, paging, "vm", host_id)
    return found


@router.get("/kvm/vms")
async def list_all_vms(_: CanRead, db: Db, paging: InPages) -> Listed[VmShown]:
    """List the VMs of all hosts."""
    found: Listed[VmShown] = await _list(db, Vm, VmShown, paging, "vm")
    return found


@router.get("/kvm/vms/{vm_id}")
async def show_vm(vm_id: UUID, _: CanRead, db: Db) -> VmShown:
    """Show a VM."""
    return VmShown.model_validate(await get(db, Vm, vm_id, "VM"))


@router.get("/podman/hosts")
async def list_podman_hosts(_: CanRead, db: Db, paging: InPages) -> Listed[HostShown]:
    """List Podman services."""
    found: Listed[HostShown] = await _list(db, PodmanHost, HostShown, paging)
    return found


@router.post("/podman/hosts", status_code=status.HTTP_201_CREATED)
async def create_podman_host(body: HostCreate, actor: CanAdminister, db: Db, audit: Audited) -> HostShown:
    """Add a Podman service. Its containers are listed in the background."""
    return await _create(db, PodmanHost, body, actor, audit)


@router.get("/podman/hosts/{host_id}")
async def show_podman_host(host_id: UUID, _: CanRead, db: Db) -> HostShown:
    """Show a Podman service."""
    return HostShown.model_validate(await get(db, PodmanHost, host_id, "host"))


@router.put("/podman/hosts/{host_id}")
async def update_podman_host(
    host_id: UUID, body: HostUpdate, actor: CanAdminister, db: Db, audit: Audited
) -> HostShown:
    """Change a Podman service."""
    return await _update(db, PodmanHost, host_id, body, actor, audit)


@router.delete("/podman/hosts/{host_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_podman_host(host_id: UUID, actor: CanAdminister, db: Db, audit: Audited) -> None:
    """Forget a Podman service and its containers. Backups of them stay."""
    await _delete(db, PodmanHost, host_id, actor, audit)


@router.post("/podman/hosts/{host_id}/test")
async def try_podman_host(host_id: UUID, _: CanAdminister, db: Db) -> HostTest:
    """Ask a Podman service now."""
    return await _test(db, PodmanHost, host_id)


@router.get("/podman/hosts/{host_id}/containers")
async def list_containers_of_host(host_id: UUID, _: CanRead, db: Db, paging: InPages) -> Listed[ContainerShown]:
    """List the containers of a host as it was last seen."""
    await get(db, PodmanHost, host_id, "host")
    found: Listed[ContainerShown] = await _list(db, Container, ContainerShown, paging, "container", host_id)
    return found


@router.get("/podman/containers")
async def list_all_containers(_: CanRead, db: Db, paging: InPages) -> Listed[ContainerShown]:
    """List the containers of all hosts."""
    found: Listed[ContainerShown] = await _list(db, Container, ContainerShown, paging, "container")
    return found


@router.get("/podman/hosts/{host_id}/pods")
async def list_pods_of_host(host_id: UUID, _: CanRead, db: Db, paging: InPages) -> Listed[PodShown]:
    """List the pods of a host as it was last seen."""
    await get(db, PodmanHost, host_id, "host")
    found: Listed[PodShown] = await _list(db, Pod, PodShown, paging, "pod", host_id)
    return found


@router.get("/podman/pods")
async def list_all_pods(_: CanRead, db: Db, paging: InPages) -> Listed[PodShown]:
    """List the pods of all hosts."""
    found: Listed[PodShown] = await _list(db, Pod, PodShown, paging, "pod")
    return found


@router.get("/podman/hosts/{host_id}/volumes")
async def list_volumes_of_host(host_id: UUID, _: CanRead, db: Db, paging: InPages) -> Listed[VolumeShown]:
    """List the named volumes of a host as it was last seen."""
    await get(db, PodmanHost, host_id, "host")
    found: Listed[VolumeShown] = await _list(db, Volume, VolumeShown, paging, "volume", host_id)
    return found


@router.get("/podman/volumes")
async def list_all_volumes(_: CanRead, db: Db, paging: InPages) -> Listed[VolumeShown]:
    """List the named volumes of all hosts."""
    found: Listed[VolumeShown] = await _list(db, Volume, VolumeShown, paging, "volume")
    return found
