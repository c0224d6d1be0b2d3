"""Restoring to another host: its libvirt takes the disks over the connection, as volumes of one of its storage pools.

The connection is as safe as its transport (`qemu+ssh`, `qemu+tls`). A VM there cannot be overwritten, since libvirt knows no way to swap
the files of a pool, and the state of its TPM cannot be brought there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from lab_backup.blocks import Buffer
from lab_backup.errors import TargetExistsError, UsageError
from lab_backup.sources.libvirt import define
from lab_backup.sources.libvirt.conflicts import Identity
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain_xml import Definition, NewDisk, rewrite_for_restore
from lab_backup.sources.libvirt.errors import HypervisorError, translated
from lab_backup.sources.libvirt.restore_plan import (
    FORMATS,
    Options,
    PlannedDisk,
    PlannedFile,
    RestorePlan,
    SavedDisk,
    safe_name,
)
from lab_backup.units import KiB, format_size

_PIECE = 256 * KiB  # bytes in one message; libvirt's protocol takes at most 4 MiB, and its own tools send this much


def plan_remote(
    hypervisor: Hypervisor,
    saved: Definition,
    options: Options,
    identity: Identity,
    xml: str,
    disks: Sequence[SavedDisk],
    *,
    nvram: bool,
) -> RestorePlan:
    """Plan a restore into a pool of another host; changes nothing. Raises UsageError, NotFoundError (pool), TargetExistsError."""
    if identity.current is not None:
        raise UsageError(
            f"a VM at {hypervisor.name} cannot be overwritten from here",
            hint="restore it under a new --name, or run lab-backup there",
        )
    if options.directory is not None:
        raise UsageError(
            f"disks get to {hypervisor.name} through a storage pool only", hint="name a --pool, or run lab-backup there"
        )
    pool = options.pool or define.DEFAULT_POOL
    folder = define.pool_folder(hypervisor.connection, pool)
    name = safe_name(identity.name)
    planned = tuple(
        PlannedDisk(disk.name, form, _volume(folder / f"{name}-{disk.name}.{form}"))
        for disk in disks
        for form in [options.format or (disk.format if disk.format in FORMATS else "qcow2")]
    )
    variables = _volume(folder / f"{name}_VARS.fd") if nvram and saved.has_nvram else None
    plan_files = [disk.file for disk in planned] + ([variables] if variables else [])
    _check_free(hypervisor.connection, pool, [file.path.name for file in plan_files])
    terminals = str(folder / name)
    rewritten = rewrite_for_restore(
        xml,
        name=identity.name,
        new_identity=identity.renamed,
        disks={disk.target: NewDisk(str(disk.file.path), disk.format) for disk in planned},
        nvram_path=None if variables is None else str(variables.path),
        trusted=options.trusted,
        terminals=terminals,
        exists=lambda path: not path.startswith(terminals),  # its host's files cannot be seen from here
    )
    warnings = list(rewritten.warnings)
    if saved.tpm is not None:
        warnings.append(
            "the state of the TPM cannot be brought to another host: keys in it, such as those of BitLocker, are lost"
        )
    warnings += [
        f"the network {network!r} is not active there: the VM will not start without it"
        for network in define.missing_networks(hypervisor.connection, saved.networks)
    ]
    return RestorePlan(
        name=identity.name,
        uuid=rewritten.uuid,
        xml=rewritten.xml,
        disks=planned,
        nvram=variables,
        tpm=None,
        current=None,
        pool=pool,
        remote=True,
        replaces=(),
        warnings=tuple(warnings),
        notes=rewritten.notes,
    )


def _volume(path: Path) -> PlannedFile:
    return PlannedFile(written=path, path=path, old=None, owner=None, mode=0o600)


def _check_free(connection: Any, pool: str, names: Sequence[str]) -> None:
    define.refresh_pool(connection, pool)
    with translated(f"look at storage pool {pool!r}"):
        taken = set(connection.storagePoolLookupByName(pool).listVolumes())
    for name in names:
        if name in taken:
            raise TargetExistsError(
                f"there is a volume {name!r} in the pool {pool!r} already; it was left as it was",
                hint="give another --name or --pool",
            )


def make_volume(hypervisor: Hypervisor, pool: str, name: str, size: int) -> Any:
    """Make an empty volume of `size` bytes in a pool and return it; all of it reads as zeroes. Raises HypervisorError."""
    root = Element("volume", type="file")
    SubElement(root, "name").text = name
    SubElement(root, "capacity", unit="bytes").text = str(size)
    SubElement(root, "allocation", unit="bytes").text = "0"
    target = SubElement(root, "target")
    SubElement(target, "format", type="raw")  # what is uploaded are the file's bytes, whatever they mean
    permissions = SubElement(target, "permissions")
    SubElement(permissions, "mode").text = "0600"
    with translated(f"make volume {name!r} in the pool {pool!r}"):
        return hypervisor.connection.storagePoolLookupByName(pool).createXML(tostring(root, encoding="unicode"), 0)


def check_room(hypervisor: Hypervisor, pool: str, needed: int) -> None:
    """Raise HypervisorError where a pool has less than `needed` bytes free."""
    with translated(f"look at storage pool {pool!r}"):
        free = hypervisor.connection.storagePoolLookupByName(pool).info()[3]
    if free < needed:
        raise HypervisorError(
            f"there is too little space in the pool {pool!r}: {format_size(needed)} needed, {format_size(free)} free",
            hint="make room there, or name another --pool",
        )


def remove_volume(volume: Any) -> None:
    """Remove a volume that we made."""
    with translated("remove a volume of the failed restore"):
        volume.delete(0)


def upload(
    hypervisor: Hypervisor,
    volume: Any,
    size: int,
    parts: Iterator[tuple[int, Buffer]],
    advance: Callable[[int], None],
) -> None:
    """Fill a volume of `size` bytes with `parts`, each the place and the bytes of a piece, ascending; the rest are holes.

    `advance` is told the bytes that were sent. Raises HypervisorError.
    """
    stream = hypervisor.connection.newStream(0)
    try:
        with translated("send a disk to the hypervisor"):
            volume.upload(stream, 0, 0, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
            at = 0
            for offset, data in parts:
                _send_hole(stream, offset - at)
                _send(stream, memoryview(data).cast("B"))
                at = offset + len(data)
                advance(len(data))
            _send_hole(stream, size - at)  # libvirt cuts the volume off behind what was sent
            stream.finish()
    except BaseException:
        with suppress(libvirt.libvirtError):
            stream.abort()
        raise


def _send_hole(stream: Any, length: int) -> None:
    if length > 0:
        stream.sendHole(length, 0)


def _send(stream: Any, data: memoryview) -> None:
    while data:
        sent = stream.send(bytes(data[:_PIECE]))
        if sent < 0:
            raise HypervisorError("the hypervisor takes no more of the disk", hint="see its log")
        data = data[sent:]
