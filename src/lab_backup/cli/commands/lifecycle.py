"""`lab-backup delete`, `undelete`, `protect` and `unprotect`."""

from typing import Annotated

import typer

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, RepoOption
from lab_backup.cli.tables import SHORT_ID


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

    words = (
        "is gone for good; `lab-backup gc` frees its space"
        if now
        else "is deleted; `lab-backup undelete` takes it back"
    )
    with opened(repo, passphrase_file) as repository:
        marked = lifecycle.delete(repository, backup, now=now)
    printing.show(marked, lambda item: f"Backup {item.backup[:SHORT_ID]} of {item.source} {words}.", as_json=as_json)
    return ExitCode.DONE


def undelete(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Take a deletion back, as long as its grace period lasts."""
    from lab_backup.operations import lifecycle

    with opened(repo, passphrase_file) as repository:
        marked = lifecycle.undelete(repository, backup)
    printing.show(marked, lambda item: f"Backup {item.backup[:SHORT_ID]} of {item.source} is back.", as_json=as_json)
    return ExitCode.DONE


def protect(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Keep a backup from being deleted, by hand or by a retention rule."""
    from lab_backup.operations import lifecycle

    with opened(repo, passphrase_file) as repository:
        marked = lifecycle.protect(repository, backup)
    printing.show(
        marked, lambda item: f"Backup {item.backup[:SHORT_ID]} of {item.source} is protected.", as_json=as_json
    )
    return ExitCode.DONE


def unprotect(
    backup: BackupArgument, repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Allow the deletion of a protected backup again."""
    from lab_backup.operations import lifecycle

    with opened(repo, passphrase_file) as repository:
        marked = lifecycle.unprotect(repository, backup)
    printing.show(
        marked, lambda item: f"Backup {item.backup[:SHORT_ID]} of {item.source} is protected no more.", as_json=as_json
    )
    return ExitCode.DONE
