"""`lab-backup replicate`: copies of backups in another repository."""

from pathlib import Path
from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, QuietOption
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError

FROM_VARIABLE = "LAB_BACKUP_FROM_PASSPHRASE"


def replicate(
    origin: Annotated[
        str, typer.Option("--from", metavar="URL", envvar="LAB_BACKUP_REPO", help="The repository to copy from.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The repository to copy to, made before.")],
    backups: Annotated[
        list[str] | None, typer.Argument(metavar="BACKUP", help="Only these backups.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All backups that are not deleted.")] = False,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="All backups of this source, such as vm/web.")
    ] = None,
    read_back: Annotated[
        bool, typer.Option("--read-back", help="Read what was stored from the target again, and check it.")
    ] = False,
    from_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            readable=False,
            help=f"The passphrase of --from, if it has another one; else {FROM_VARIABLE}, or you are asked.",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Copy backups to another repository: only what it lacks, under its own keys, every byte checked on the way.

    Run it as often as you like: what is there already is passed over, and an interrupted run goes on where it was.
    """
    from lab_backup.operations.replicate import replicate as copy

    if sum((bool(backups), everything, source is not None)) != 1:
        raise UsageError("say what to copy: backups by name, --source NAME, or --all")
    other = {"variable": FROM_VARIABLE, "option": "--from-passphrase-file", "prompt": "Passphrase of --from"}
    with (
        opened(origin, from_passphrase_file, **other) as here,
        opened(to, passphrase_file, prompt="Passphrase of --to") as there,
        shown(quiet=quiet) as progress,
    ):
        result = copy(here, there, backups or (), source_name=source, read_back=read_back, progress=progress)
    printing.show(result, tables.replication, as_json=as_json)
    printing.tell_all(warnings=[f"{item.backup[:12]} {item.source}: {item.error}" for item in result.failed])
    if any(item.damaged for item in result.failed):
        return ExitCode.DAMAGED
    return ExitCode.FAILED if result.failed else ExitCode.DONE
