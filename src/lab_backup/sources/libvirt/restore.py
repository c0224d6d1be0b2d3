"""Bringing a VM back: everything is decided and checked before a byte is written, and the VM appears only when its disks are whole.

`plan_restore` looks and decides; the caller writes the files where the plan says; `complete` puts them in place and defines the VM, or
undoes what it did. A plan that overwrites lets new files be written beside the old ones, so the old VM stays whole until `complete`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from lab_backup.errors import BusyError, LabBackupError, TargetExistsError, UsageError
from lab_backup.sources.libvirt import define
from lab_backup.sources.libvirt.conflicts import check_replaceable, decide_identity
from lab_backup.sources.libvirt.connection import Hypervisor
from lab_backup.sources.libvirt.domain_xml import read_definition
from lab_backup.sources.libvirt.local_restore import LocalPlanner
from lab_backup.sources.libvirt.remote_restore import plan_remote
from lab_backup.sources.libvirt.restore_plan import FORMATS, Options, RestorePlan, SavedDisk
from lab_backup.sources.libvirt.swap import Replacement, Swap


def plan_restore(
    hypervisor: Hypervisor, xml: str, disks: Sequence[SavedDisk], options: Options, *, nvram: bool, tpm: bool
) -> RestorePlan:
    """Decide everything about the restore of a VM with definition `xml`.

    `nvram` and `tpm` tell whether the backup has its firmware variables and the state of its TPM.
    Changes nothing. Raises TargetExistsError (name, UUID or file taken), BusyError (the VM to overwrite runs, or is being backed up),
    UsageError, NotFoundError (pool), DefinitionError, AccessDeniedError.
    """
    if options.format not in (None, *FORMATS):
        raise UsageError(f"{options.format!r} is not a format", hint="use qcow2 or raw")
    if options.directory is not None and options.pool is not None:
        raise UsageError("a directory and a pool cannot both be the place", hint="give one of --directory and --pool")
    definition = read_definition(xml)
    identity = decide_identity(hypervisor.connection, definition, options)
    if hypervisor.is_local:
        return LocalPlanner(hypervisor, definition, options, identity).plan(xml, disks, nvram=nvram, tpm=tpm)
    return plan_remote(hypervisor, definition, options, identity, xml, disks, nvram=nvram)


def complete(hypervisor: Hypervisor, plan: RestorePlan) -> list[str]:
    """Put the written files in place and define the VM; on any failure everything is as it was before, the written files aside.

    Returns warnings about what could not be tidied up afterwards. Raises BusyError where the VM was started meanwhile, TargetExistsError,
    SwapError, HypervisorError.
    """
    connection = hypervisor.connection
    swap = Swap()
    with ExitStack() as undo:
        undo.callback(swap.undo)
        if plan.current is None:
            _check_still_free(connection, plan)
        else:
            _check_still_off(connection, plan)
        for file in plan.files():
            swap.replace(Replacement(file.written, file.path, file.old))
        domain = define.define(connection, plan.xml, plan.name)
        undo.callback(_take_back, connection, domain, plan)
        if plan.current is not None and domain.isActive():
            raise BusyError(
                f"VM {plan.name!r} was started while it was being overwritten", hint="shut it down and try again"
            )
        undo.pop_all()
    return list(_tidy_up(connection, domain, plan, swap))


def _check_still_free(connection: Any, plan: RestorePlan) -> None:
    if define.find_by_name(connection, plan.name) or define.find_by_uuid(connection, plan.uuid):
        raise TargetExistsError(
            f"a VM {plan.name!r} was defined meanwhile; it was left as it was", hint="restore under another --name"
        )


def _check_still_off(connection: Any, plan: RestorePlan) -> None:
    domain = define.find_by_name(connection, plan.name)
    if domain is None:
        raise BusyError(
            f"VM {plan.name!r} was undefined while it was being overwritten", hint="try again without --overwrite"
        )
    check_replaceable(domain, plan.uuid)
    if define.definition_of(domain) != plan.current:
        raise BusyError(f"VM {plan.name!r} was changed while it was being overwritten", hint="try again")


def _take_back(connection: Any, domain: Any, plan: RestorePlan) -> None:
    if plan.current is None:
        define.undefine(domain)
    else:
        define.define(connection, plan.current, plan.name)


def _tidy_up(connection: Any, domain: Any, plan: RestorePlan, swap: Swap) -> Iterator[str]:
    for path in swap.commit():
        yield f"the old file {path} could not be removed"
    steps: list[Callable[[], None]] = []
    if plan.current is not None:
        steps += [lambda: define.forget_checkpoints(domain), lambda: define.forget_saved_memory(domain)]
    if plan.pool is not None:
        steps.append(lambda: define.refresh_pool(connection, plan.pool or ""))
    for step in steps:
        try:
            step()
        except LabBackupError as error:
            yield str(error)


def start(hypervisor: Hypervisor, plan: RestorePlan) -> None:
    """Start the restored VM. Raises HypervisorError."""
    define.start(hypervisor.domain(plan.uuid))
