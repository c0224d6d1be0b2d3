"""Asking and telling libvirt what a restore needs: who is there already, where disks go, and the new VM itself."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
from defusedxml.ElementTree import fromstring

from lab_backup.errors import NotFoundError, UsageError
from lab_backup.sources.libvirt.domain import inactive_xml
from lab_backup.sources.libvirt.domain_xml import read_definition
from lab_backup.sources.libvirt.errors import translate, translated

_FOLDER_POOLS = {"dir", "fs", "netfs"}  # pools whose volumes are files in one folder
DEFAULT_POOL = "default"  # libvirt's tools make it at their first use


def find_by_name(connection: Any, name: str) -> Any | None:
    """Return the virDomain called `name`, or None."""
    return _find(lambda: connection.lookupByName(name), f"look up VM {name!r}")


def find_by_uuid(connection: Any, uuid: str) -> Any | None:
    """Return the virDomain with `uuid`, or None."""
    return _find(lambda: connection.lookupByUUIDString(uuid), f"look up VM {uuid}")


def _find(look: Any, doing: str) -> Any | None:
    try:
        return look()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise translate(error, doing) from error


def disk_users(connection: Any, but: str) -> dict[Path, str]:
    """Return the local image files of all VMs except the one called `but`, with the name of the VM that has them."""
    users = {}
    with translated("list the VMs"):
        for domain in connection.listAllDomains():
            if domain.name() != but:
                for path in read_definition(domain.XMLDesc(0)).disks.values():
                    if path:
                        users[Path(path).resolve()] = domain.name()
    return users


def pool_folder(connection: Any, name: str) -> Path:
    """Return the folder of the storage pool `name`. Raises NotFoundError, UsageError where it has none or is not active."""
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise translate(error, f"look up storage pool {name!r}") from error
        with translated("list the storage pools"):
            known = ", ".join(sorted(other.name() for other in connection.listAllStoragePools()))
        raise NotFoundError(
            f"there is no storage pool {name!r}",
            hint=f"pools: {known}" if known else "libvirt knows no pool; use --directory",
        ) from error
    with translated(f"look at storage pool {name!r}"):
        active, root = pool.isActive(), fromstring(pool.XMLDesc())
    path = root.findtext("target/path")
    if root.get("type") not in _FOLDER_POOLS or not path:
        raise UsageError(
            f"storage pool {name!r} is of type {root.get('type')}, which holds no image files",
            hint="name a pool of type dir, or --directory",
        )
    if not active:
        raise UsageError(f"storage pool {name!r} is not active", hint=f"start it first: virsh pool-start {name}")
    return Path(path)


def default_folder(connection: Any) -> Path | None:
    """Return the folder of libvirt's default pool, or None where there is no such pool."""
    with suppress(NotFoundError, UsageError):
        return pool_folder(connection, DEFAULT_POOL)
    return None


def refresh_pool(connection: Any, name: str) -> None:
    """Make libvirt see the new files in a pool."""
    with translated(f"refresh storage pool {name!r}"):
        connection.storagePoolLookupByName(name).refresh()


def missing_networks(connection: Any, names: tuple[str, ...]) -> list[str]:
    """Return which of these virtual networks libvirt does not know, or has not started."""
    missing = []
    for name in dict.fromkeys(names):
        try:
            if not connection.networkLookupByName(name).isActive():
                missing.append(name)
        except libvirt.libvirtError:
            missing.append(name)
    return missing


def definition_of(domain: Any) -> str:
    """Return the persistent definition of a VM with its secrets, fit for defining it again."""
    with translated("read the definition of the VM"):
        return inactive_xml(domain)


def define(connection: Any, xml: str, name: str) -> Any:
    """Define a VM, or redefine the one of that name and UUID, and return it."""
    with translated(f"define VM {name!r}"):
        return connection.defineXML(xml)


def undefine(domain: Any) -> None:
    """Take back a definition; NVRAM and TPM state stay where libvirt can leave them (8.9 and later)."""
    flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    try:
        domain.undefineFlags(flags | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
    except libvirt.libvirtError:
        with translated("undefine the VM"):
            domain.undefineFlags(flags)


def forget_checkpoints(domain: Any) -> None:
    """Remove all that libvirt knows of the VM's checkpoints; their bitmaps went with the old disks."""
    with translated("remove the VM's checkpoints"):
        for checkpoint in domain.listAllCheckpoints(0):
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def forget_saved_memory(domain: Any) -> None:
    """Remove the memory of a VM that was saved instead of shut down: it would not fit the restored disks."""
    with translated("remove the VM's saved memory"):
        if domain.hasManagedSaveImage():
            domain.managedSaveRemove()


def start(domain: Any) -> None:
    """Start the VM."""
    with translated("start the VM"):
        domain.create()
