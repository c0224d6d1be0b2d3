"""Who a restored VM will be, and whether another one is in its way; decided before anything is written."""

from dataclasses import dataclass
from typing import Any

from lab_backup.errors import BusyError, TargetExistsError
from lab_backup.sources.libvirt import define, ownership
from lab_backup.sources.libvirt.domain_xml import Definition, check_name
from lab_backup.sources.libvirt.errors import translated
from lab_backup.sources.libvirt.restore_plan import Options


@dataclass(frozen=True, slots=True)
class Identity:
    """The restored VM's `name`; whether it is `renamed`, which gives it a new UUID; and the virDomain that it replaces, with its definition."""

    name: str
    renamed: bool
    replaced: Any | None
    current: str | None


def decide_identity(connection: Any, saved: Definition, options: Options) -> Identity:
    """Return who the VM will be. Raises TargetExistsError (name or UUID taken), BusyError (it cannot be replaced now), UsageError."""
    name = check_name(options.name or saved.name)
    domain = define.find_by_name(connection, name)
    if domain is None:
        if name == saved.name:
            _check_uuid(connection, saved)
        return Identity(name, name != saved.name, None, None)
    if not options.overwrite:
        raise TargetExistsError(
            f"there is a VM {name!r} already; it was left as it was",
            hint="give the restored one another --name, or say --overwrite",
        )
    check_replaceable(domain, saved.uuid)
    return Identity(name, renamed=False, replaced=domain, current=define.definition_of(domain))


def _check_uuid(connection: Any, saved: Definition) -> None:
    other = define.find_by_uuid(connection, saved.uuid)
    if other is not None:
        with translated("look at the VMs"):
            name = other.name()
        raise TargetExistsError(
            f"VM {saved.name!r} is there under the name {name!r} (UUID {saved.uuid})",
            hint=f"restore it under a new --name, or over that one: --name {name} --overwrite",
        )


def check_replaceable(domain: Any, uuid: str) -> None:
    """Raise unless the VM has that `uuid` and may be overwritten at this moment: TargetExistsError, BusyError."""
    with translated("look at the VM"):
        name, found, active = domain.name(), domain.UUIDString(), domain.isActive()
        persistent, snapshots = domain.isPersistent(), domain.snapshotNum()
    if found != uuid:
        raise TargetExistsError(
            f"VM {name!r} is not the one in the backup: its UUID is {found}, that of the backup {uuid}",
            hint="restore under another --name, or undefine that VM first",
        )
    if active or not persistent:
        raise BusyError(
            f"VM {name!r} is running; it can be overwritten only when it is off",
            hint=f"shut it down first: virsh shutdown {name}",
        )
    if snapshots:
        raise BusyError(
            f"VM {name!r} has {snapshots} snapshots, which would be lost",
            hint="delete them first, or restore under another --name",
        )
    ownership.refuse_if_claimed(domain)
