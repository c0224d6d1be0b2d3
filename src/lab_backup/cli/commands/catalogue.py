"""`lab-backup list` and `show`: what is in the repository."""

from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, RepoOption


def list_backups(
    repo: RepoOption,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only backups of this source: NAME, vm/NAME or its UUID.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """List the backups, oldest first."""
    from lab_backup.operations.catalogue import list_backups as listed

    with opened(repo, passphrase_file) as repository:
        listing = listed(repository, source=source)
    printing.show(listing, lambda found: tables.backups(found, source=source), as_json=as_json)
    for path, what in listing.unreadable.items():
        printing.tell("warning", f"{path} cannot be read: {what}")
    return ExitCode.DAMAGED if listing.unreadable else ExitCode.DONE


def show(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Show all about one backup."""
    from lab_backup.operations.catalogue import find_backup, summary

    with opened(repo, passphrase_file) as repository:
        printing.show(summary(find_backup(repository, backup)), tables.backup, as_json=as_json)
    return ExitCode.DONE
