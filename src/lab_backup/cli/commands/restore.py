"""`lab-backup restore`: virtual machines and single disks out of the repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import (
    DEFAULT_CONNECT,
    BackupArgument,
    ConnectOption,
    ImageFormat,
    JsonOption,
    PassphraseFileOption,
    QuietOption,
    RepoOption,
    examples,
)
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError

if TYPE_CHECKING:
    from lab_backup.operations.restore import RestoreResult

app = typer.Typer(help="Restore a virtual machine or a single disk.")


@app.command(
    epilog=examples(
        "lab-backup restore vm latest:vm/web --repo /srv/backups --name web-again --start",
        "lab-backup restore vm 8f41b7c24cbd --repo /srv/backups --overwrite",
        "lab-backup restore vm 8f41b7c24cbd --repo /srv/backups --name test --directory /var/lib/libvirt/images",
        "lab-backup restore vm latest:web --repo /srv/backups --connect qemu+ssh://root@kvm7/system --pool default",
    )
)
def vm(
    backup: BackupArgument,
    repo: RepoOption,
    connect: ConnectOption = DEFAULT_CONNECT,
    name: Annotated[
        str | None,
        typer.Option(metavar="NEW", help="Restore beside the old VM: with this name, a new UUID and new MACs."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the VM of that name. It stays whole until all is written and checked."
        ),
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", readable=False, help="Where the disks go.  [default: where the VM's were]"),
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="The storage pool that the disks go to.")] = None,
    format: Annotated[  # noqa: A002  the word that users know
        ImageFormat | None, typer.Option(help="Of the disks.  [default: each as it was]")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start the VM when it is restored.")] = False,
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted", help="Keep all that the definition wants of the host; only if you trust the storage."
        ),
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Bring a whole VM back, under its own name or a new one.

    A restore that fails removes what it made and touches nothing that was there before.
    """
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.restore import restore_vm

    if directory is not None and pool is not None:
        raise UsageError("the disks can go to a --directory or to a --pool, not to both")
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = restore_vm(
            repository, find_backup(repository, backup), connect=connect, name=name, overwrite=overwrite,
            directory=directory, pool=pool, format=format, start=start, trusted=trusted, progress=progress,
        )  # fmt: skip
    return _finish(result, as_json=as_json)


@app.command(
    epilog=examples(
        "lab-backup restore image latest:vm/web --repo /srv/backups --to /tmp/web.qcow2 --disk vda",
        "lab-backup restore image 8f41b7c24cbd --repo /srv/backups --to /dev/vg0/data --in-place",
    )
)
def image(
    backup: BackupArgument,
    repo: RepoOption,
    to: Annotated[
        Path, typer.Option(metavar="PATH", readable=False, help="The file to make, or with --in-place to write over.")
    ],
    disk: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Which disk, such as vda, if there are several.")
    ] = None,
    format: Annotated[  # noqa: A002  the word that users know
        ImageFormat | None, typer.Option(help="Of the file.  [default: what its name says, or as the disk was]")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write over the device or raw image that is there.")
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Write one disk of a backup to a new file, or over a device."""
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.restore import restore_image

    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = restore_image(
            repository, find_backup(repository, backup), to=to, disk=disk, format=format, in_place=in_place,
            progress=progress,
        )  # fmt: skip
    return _finish(result, as_json=as_json)


def _finish(result: "RestoreResult", *, as_json: bool) -> ExitCode:
    printing.tell_all(warnings=result.warnings, notes=result.notes)
    printing.show(result, tables.restored, as_json=as_json)
    return ExitCode.WARNINGS if result.warnings else ExitCode.DONE
