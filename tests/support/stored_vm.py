"""Backups of VMs that are off, made from their parts alone, so that tests of restores need no running guest."""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import libvirt

from lab_backup.demo.machine import Guest
from lab_backup.repository.backups import Backup
from lab_backup.repository.manifest import VERSION, DiskEntry, Manifest, SourceInfo
from lab_backup.repository.repository import Repository
from lab_backup.repository.session import BackupSession, new_backup_id
from lab_backup.sources.image.source import open_image
from lab_backup.sources.libvirt.domain_xml import read_definition


def store_vm(
    repository: Repository, guest: Guest, *, xml: str | None = None, files: Mapping[str, bytes] | None = None
) -> Backup:
    """Put a backup of `guest` into the repository: its disks, its definition (or `xml`), and more `files`."""
    definition = str(guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
    disks, backup_id = [], new_backup_id()
    with BackupSession(repository, backup_id) as session, ExitStack() as stack:
        for name, path in read_definition(definition).disks.items():
            form = "raw" if path and path.endswith(".raw") else "qcow2"
            export = stack.enter_context(open_image(Path(path or ""), format=form)).disks[0]
            tree, _ = session.write_disk(export.reader, export.reader.extents(), parent=None, advance=lambda _: None)
            root = None if tree.root is None else tree.root.hex()
            disks.append(
                DiskEntry(
                    name=name,
                    size=tree.size,
                    chunk_size=tree.chunk_size,
                    root=root,
                    format=form,
                    identity=name,
                    kind="full",
                )
            )
        stored = {"domain.xml": (xml or definition).encode(), **(files or {})}
        manifest = Manifest(
            version=VERSION,
            backup=backup_id,
            repository=repository.config.id,
            time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            source=SourceInfo(kind="vm", id=guest.domain.UUIDString(), name=guest.name),
            kind="full",
            consistency="offline",
            disks=tuple(disks),
            files=tuple(session.write_file(name, data) for name, data in stored.items()),
        )
        return session.publish(manifest)
