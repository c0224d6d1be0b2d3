"""`lab-backup prune`: retention."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, RepoOption
from lab_backup.errors import UsageError

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_MAX_DAYS = 36500  # a hundred years; more is a slip of the finger


def parse_days(text: str) -> timedelta:
    """Return the time that `text` names: `36h`, `14d`, `8w`. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    span = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta(0)
    if not timedelta(0) < span <= timedelta(days=_MAX_DAYS):
        raise UsageError(f"{text!r} is not a length of time", hint="write hours, days or weeks: 36h, 14d, 8w")
    return span


def prune(
    repo: RepoOption,
    keep_last: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the newest N.")] = 0,
    keep_hourly: Annotated[int, typer.Option(metavar="N", min=0, help="Keep one of each of N hours.")] = 0,
    keep_daily: Annotated[int, typer.Option(metavar="N", min=0, help="Keep one of each of N days.")] = 0,
    keep_weekly: Annotated[int, typer.Option(metavar="N", min=0, help="Keep one of each of N ISO weeks.")] = 0,
    keep_monthly: Annotated[int, typer.Option(metavar="N", min=0, help="Keep one of each of N months.")] = 0,
    keep_yearly: Annotated[int, typer.Option(metavar="N", min=0, help="Keep one of each of N years.")] = 0,
    keep_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Keep all that are no older: 36h, 14d, 8w.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Where days begin and end, such as Europe/Berlin.")
    ] = "UTC",
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only backups of this source: NAME, vm/NAME or its UUID.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed, and why.")] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Mark backups as deleted that no rule keeps. `undelete` takes that back until the grace period ends; `gc` frees the space."""
    from lab_backup.operations.prune import make_policy
    from lab_backup.operations.prune import prune as apply
    from lab_backup.policy.cron import parse_zone

    policy = make_policy(
        last=keep_last,
        hourly=keep_hourly,
        daily=keep_daily,
        weekly=keep_weekly,
        monthly=keep_monthly,
        yearly=keep_yearly,
        within=timedelta(0) if keep_within is None else parse_days(keep_within),
    )
    parse_zone(timezone)  # before anybody types a passphrase
    with opened(repo, passphrase_file) as repository:
        result = apply(repository, policy, zone=timezone, source=source, dry_run=dry_run)
    printing.show(result, tables.pruning, as_json=as_json)
    for path, what in result.unreadable.items():
        printing.tell("warning", f"{path} cannot be read, so it was left alone: {what}")
    return ExitCode.DAMAGED if result.unreadable else ExitCode.DONE
