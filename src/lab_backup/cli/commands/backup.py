"""`lab-backup backup`: virtual machines and disk images into the repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import (
    DEFAULT_CONNECT,
    ConnectOption,
    ImageFormat,
    JsonOption,
    PassphraseFileOption,
    QuietOption,
    RepoOption,
    examples,
)
from lab_backup.cli.progress import shown
from lab_backup.sources.source import Quiesce

if TYPE_CHECKING:
    from lab_backup.operations.catalogue import BackupSummary
    from lab_backup.repository.repository import Repository

app = typer.Typer(help="Back up a virtual machine or a disk image.")


@app.command(
    epilog=examples(
        "lab-backup backup vm web --repo /srv/backups",
        "lab-backup backup vm web --repo /srv/backups --dry-run",
        "lab-backup backup vm db --repo /srv/backups --disk vda --quiesce require",
        "lab-backup backup vm web --repo /srv/backups --connect qemu+ssh://root@kvm7/system",
    )
)
def vm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The VM's name or UUID.")],
    repo: RepoOption,
    connect: ConnectOption = DEFAULT_CONNECT,
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="Only this disk, such as vda; may be given several times."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read the disks whole; what is known is not stored again.")
    ] = False,
    quiesce: Annotated[
        Quiesce,
        typer.Option(help="Freeze the guest's file systems: if its agent answers, or else fail, or not at all."),
    ] = Quiesce.AUTO,
    scratch_directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where QEMU keeps what the guest overwrites meanwhile.  [default: beside each disk]"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be read, per disk.")] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Back up a VM, running or not. Of disks that it knows already, only what has changed is read."""
    with opened(repo, passphrase_file) as repository:
        if dry_run:
            return _plan(repository, name, connect=connect, disks=disk or (), full=full, as_json=as_json)
        from lab_backup.operations.backup import backup_vm

        with shown(quiet=quiet) as progress:
            made = backup_vm(
                repository,
                name,
                connect=connect,
                disks=disk or (),
                full=full,
                quiesce=quiesce,
                scratch_directory=scratch_directory,
                progress=progress,
            )
    return _finish(made, as_json=as_json)


@app.command(
    epilog=examples(
        "lab-backup backup image /var/lib/libvirt/images/web.qcow2 --repo /srv/backups",
        "lab-backup backup image /dev/vg0/data --repo /srv/backups --name data",
    )
)
def image(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", readable=False, help="A raw or qcow2 file, or a block device; not in use.")
    ],
    repo: RepoOption,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it.  [default: its path]")] = None,
    format: Annotated[  # noqa: A002  the word that users know
        ImageFormat | None, typer.Option(help="Of the file, where its name does not tell.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Back up a disk image or a block device. All of it is read; what is known already is not stored again."""
    from lab_backup.operations.backup import backup_image

    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        made = backup_image(repository, path, name=name, format=format, progress=progress)
    return _finish(made, as_json=as_json)


def _plan(
    repository: "Repository", name: str, *, connect: str, disks: "list[str] | tuple[()]", full: bool, as_json: bool
) -> ExitCode:
    from lab_backup.operations.backup import plan_vm

    plans = plan_vm(repository, name, connect=connect, disks=disks, full=full)
    if as_json:
        listed = [
            {
                "name": plan.name,
                "kind": plan.kind,
                "bytes_total": plan.size,
                "bytes_to_read": plan.bytes_to_read,
                "reason": plan.reason,
            }
            for plan in plans
        ]
        printing.show_json({"source": name, "disks": listed})
    else:
        printing.show(plans, tables.plan, as_json=False)
    return ExitCode.DONE


def _finish(made: "BackupSummary", *, as_json: bool) -> ExitCode:
    printing.tell_all(warnings=made.warnings, notes=made.notes)
    printing.show(made, tables.made, as_json=as_json)
    return ExitCode.WARNINGS if made.warnings else ExitCode.DONE
