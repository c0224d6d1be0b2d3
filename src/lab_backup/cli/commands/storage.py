"""`lab-backup storage`: looking at a storage before anything depends on it."""

from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import JsonOption, QuietOption, examples
from lab_backup.cli.progress import shown

app = typer.Typer(help="Try a storage out.")


@app.callback()
def storage() -> None:
    """Try a storage out."""


@app.command(
    "test",
    epilog=examples(
        "lab-backup storage test /srv/backups",
        "lab-backup storage test 's3://backups/lab?endpoint=https://nas:9000' --json",
    ),
)
def try_out(
    url: Annotated[str, typer.Argument(metavar="URL", help="The storage, as for --repo; it must be there.")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Write, read, list, create, replace and delete in a folder of its own; measure speed, latency and clock; say what is wrong.

    It moves a few hundred MiB, leaves nothing behind, and touches nothing that is there, a repository included.
    """
    from lab_backup.operations.storage_test import check_storage, opened_for_test

    with opened_for_test(url) as opened, shown(quiet=quiet) as progress:
        report = check_storage(opened, step=lambda name: progress.start(None, f"testing {name}"))
    printing.show(report, tables.storage, as_json=as_json)
    for check in report.checks:
        if check.hint:
            printing.tell("hint", f"{check.name}: {check.hint}")
    if report.failed:
        return ExitCode.FAILED
    return ExitCode.WARNINGS if report.warned else ExitCode.DONE
