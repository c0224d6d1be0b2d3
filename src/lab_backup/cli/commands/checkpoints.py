"""`lab-backup checkpoints`: what backups leave in VMs so that the next one reads only what changed."""

from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import DEFAULT_CONNECT, ConnectOption, JsonOption, examples
from lab_backup.errors import UsageError

app = typer.Typer(help="List and remove the checkpoints that backups leave in VMs.")

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="The VM's name or UUID.")]


@app.command("list", epilog=examples("lab-backup checkpoints list web"))
def list_(vm: VmArgument, connect: ConnectOption = DEFAULT_CONNECT, as_json: JsonOption = False) -> ExitCode:
    """List the checkpoints of ours in a VM, oldest first."""
    from lab_backup.operations.checkpoints import list_checkpoints

    found = {"checkpoints": list_checkpoints(vm, connect=connect)}
    printing.show(found, lambda listed: tables.checkpoints(listed["checkpoints"]), as_json=as_json)
    return ExitCode.DONE


@app.command(
    epilog=examples(
        "lab-backup checkpoints remove web lab-backup-0a1b2c3d-8f41b7c24cbd4d2f9e1a6b3c5d7e9f01",
        "lab-backup checkpoints remove web --all",
    )
)
def remove(
    vm: VmArgument,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CHECKPOINT", help="Names from `checkpoints list`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints of ours in this VM.")] = False,
    connect: ConnectOption = DEFAULT_CONNECT,
    as_json: JsonOption = False,
) -> ExitCode:
    """Remove checkpoints. No backup is lost, but the next one reads the disks whole."""
    from lab_backup.operations.checkpoints import remove_checkpoints

    if every == bool(names):
        raise UsageError("say which checkpoints", hint="name them, or use --all; see: lab-backup checkpoints list")
    removed = {"removed": remove_checkpoints(vm, None if every else names, connect=connect)}
    printing.show(removed, lambda gone: "\n".join(f"Removed {name}." for name in gone["removed"]), as_json=as_json)
    return ExitCode.DONE
