"""`lab-backup export`: a backup as a file that needs no Lab Backup to be read."""

from pathlib import Path
from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown


def export(
    backup: BackupArgument,
    repo: RepoOption,
    to: Annotated[
        Path, typer.Option(metavar="FILE.tar", readable=False, help="The file to make. It is not encrypted.")
    ],
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Export a backup as a tar file.

    It holds the disks as qcow2 images, the VM's definition, and the manifest as JSON: readable without Lab Backup.
    """
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.export import export_tar

    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = export_tar(repository, find_backup(repository, backup), to, progress=progress)
    printing.show(result, tables.exported, as_json=as_json)
    return ExitCode.DONE
