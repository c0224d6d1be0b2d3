"""`lab-backup verify`: whether what was stored is still there, and unchanged."""

import re
from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError


def parse_share(text: str) -> float:
    """Return the share that `text` names, `5%` or `0.05`, as a number from 0 to 1. Raises UsageError."""
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        share = float(number) / 100 if percent else float(number)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share", hint="write more than 0% and at most 100%, such as 5%")
    return share


def parse_cover(text: str) -> float:
    """Return the share to read each day for all to be read within the time `text`, such as `30d`. Raises UsageError."""
    days = int(text[:-1]) if re.fullmatch(r"[0-9]{1,4}[d]", text) else 0
    if days < 1:
        raise UsageError(f"{text!r} is no number of days", hint="for example --cover 30d")
    return 1 / days


def verify(
    repo: RepoOption,
    backups: Annotated[
        list[str] | None,
        typer.Argument(metavar="BACKUP", help="Only these backups.  [default: all, and everything around them]"),
    ] = None,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte back and check it.")] = False,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Read so much of it, such as 5%; another part every day, all of it in time."
        ),
    ] = None,
    cover: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="Read today's part of it, so that daily runs read all in DAYS, such as 30d."),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Check that everything a restore would need is there; with --read-data or --sample also that it is unchanged."""
    from lab_backup.operations.verify import verify as check

    if sum((read_data, sample is not None, cover is not None)) > 1:
        raise UsageError("--read-data, --sample and --cover exclude each other", hint="give one of them")
    share = None if sample is None else parse_share(sample)
    if cover is not None:
        share = parse_cover(cover)
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = check(repository, backups or (), read_data=read_data, sample=share, progress=progress)
    printing.show(result, tables.verification, as_json=as_json)
    printing.tell_all(warnings=result.notes)
    if result.damage:
        return ExitCode.DAMAGED
    return ExitCode.WARNINGS if result.notes else ExitCode.DONE
