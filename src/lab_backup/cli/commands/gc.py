"""`lab-backup gc`: give back the space that no backup needs."""

from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown
from lab_backup.units import parse_duration


def gc(
    repo: RepoOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    grace: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Such as 36h, in place of the repository's own grace period."),
    ] = None,
    exclusive: Annotated[
        bool,
        typer.Option(
            "--exclusive", help="No backup is running on any host: remove garbage at once, after any --grace."
        ),
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Remove deleted backups whose grace period is over, and all data that no backup refers to.

    Safe beside running backups, on any number of hosts: data is first condemned, and removed by a later run after the grace period.
    """
    from lab_backup.operations.collect import collect

    seconds = None if grace is None else parse_duration(grace)
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = collect(repository, dry_run=dry_run, grace=seconds, exclusive=exclusive, progress=progress)
    printing.show(result, lambda done: tables.collection(done, dry_run=dry_run), as_json=as_json)
    printing.tell_all(warnings=result.notes)
    if result.missing_chunks:
        return ExitCode.DAMAGED
    return ExitCode.WARNINGS if result.notes else ExitCode.DONE
