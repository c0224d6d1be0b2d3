"""`lab-backup delete`, `undelete`, `protect` and `unprotect`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, RepoOption
from lab_backup.cli.tables import SHORT_ID, local

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab_backup.operations.catalogue import BackupSummary
    from lab_backup.repository.repository import Repository

    Change = Callable[[Repository, str], BackupSummary]


def delete(
    backup: BackupArgument,
    repo: RepoOption,
    now: Annotated[bool, typer.Option("--now", help="At once and for good; cannot be undone.")] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Delete a backup. Until the grace period ends `undelete` takes that back; `gc` then frees the space.

    Any backup can be deleted, in any order: others never depend on it.
    """
    from lab_backup.operations import lifecycle

    said = (
        "is gone for good; `lab-backup gc` frees its space"
        if now
        else "is deleted; `lab-backup undelete` takes it back"
    )
    return _change(partial(lifecycle.delete, now=now), said, backup, repo, passphrase_file, as_json=as_json)


def undelete(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Take a deletion back, as long as its grace period lasts."""
    from lab_backup.operations import lifecycle

    return _change(lifecycle.undelete, "is back", backup, repo, passphrase_file, as_json=as_json)


def protect(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Keep a backup from being deleted, by hand or by a retention rule."""
    from lab_backup.operations import lifecycle

    return _change(lifecycle.protect, "is protected", backup, repo, passphrase_file, as_json=as_json)


def unprotect(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Allow the deletion of a protected backup again."""
    from lab_backup.operations import lifecycle

    return _change(lifecycle.unprotect, "is protected no more", backup, repo, passphrase_file, as_json=as_json)


def _change(
    change: "Change", said: str, backup: str, repo: str, passphrase_file: Path | None, *, as_json: bool
) -> ExitCode:
    with opened(repo, passphrase_file) as repository:
        changed = change(repository, backup)
    locked = (
        ""
        if changed.locked_until is None
        else f" It is locked until {local(changed.locked_until)}, and stays until then."
    )
    printing.show(
        changed, lambda item: f"Backup {item.backup[:SHORT_ID]} of {item.source} {said}.{locked}", as_json=as_json
    )
    return ExitCode.DONE
