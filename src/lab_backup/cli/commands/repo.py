"""`lab-backup repo`: making and describing repositories, and who can open them."""

from pathlib import Path
from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, RepoOption, examples
from lab_backup.cli.passphrase import NEW_VARIABLE, read_passphrase
from lab_backup.units import parse_size

app = typer.Typer(help="Make and describe repositories, and manage their keys.")
keys = typer.Typer(help="List, add and remove the passphrases that open a repository.")
app.add_typer(keys, name="keys")


@app.command(
    epilog=examples(
        "lab-backup repo init /srv/backups",
        "lab-backup repo init file:///mnt/nas/lab --compression zstd:9 --passphrase-file /root/passphrase",
    )
)
def init(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", envvar="LAB_BACKUP_REPO", help="Where: a path or file:///…, empty or not yet there."
        ),
    ],
    chunk_size: Annotated[
        str, typer.Option(metavar="SIZE", help="A power of two from 16KiB to 16MiB; can't be changed later.")
    ] = "128KiB",
    compression: Annotated[str, typer.Option(metavar="CODEC", help="zstd:LEVEL, gzip or none.")] = "zstd:3",
    no_encryption: Annotated[
        bool, typer.Option("--no-encryption", help="Ask for no passphrase: who reads the storage can read the backups.")
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Make a new repository.

    Without its passphrase or its recovery sheet nobody can read it again, so print the sheet next.
    """
    from lab_backup.operations.repositories import init_repository

    size = parse_size(chunk_size)
    passphrase = None if no_encryption else read_passphrase(passphrase_file, confirm=True)
    info = init_repository(
        url, passphrase=passphrase, chunk_size=size, compression=compression, encryption=not no_encryption
    )
    printing.show(info, tables.repository, as_json=as_json)
    if not no_encryption:
        printing.tell("hint", f"print the recovery sheet and lock it away: lab-backup repo recovery-sheet --repo {url}")
    return ExitCode.DONE


@app.command(epilog=examples("lab-backup repo info --repo /srv/backups"))
def info(repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False) -> ExitCode:
    """Describe the repository: its id, its settings, and how much it holds."""
    from lab_backup.operations.repositories import repository_info

    with opened(repo, passphrase_file) as repository:
        printing.show(repository_info(repository), tables.repository, as_json=as_json)
    return ExitCode.DONE


@app.command(
    epilog=examples(
        "lab-backup repo recovery-sheet --repo /srv/backups | lp",
        "lab-backup repo recovery-sheet --repo /srv/backups > /media/stick/recovery-sheet.txt",
    )
)
def recovery_sheet(
    repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False
) -> ExitCode:
    """Print a page that opens the repository when all passphrases are lost. Keep it where the storage is not."""
    from lab_backup.operations.repositories import recovery_sheet as sheet

    with opened(repo, passphrase_file) as repository:
        printing.show({"recovery_sheet": sheet(repository)}, lambda made: made["recovery_sheet"], as_json=as_json)
    return ExitCode.DONE


@keys.command("list", epilog=examples("lab-backup repo keys list --repo /srv/backups"))
def list_(repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False) -> ExitCode:
    """List the passphrases that open the repository, by id and label."""
    from lab_backup.operations.repositories import list_keys

    with opened(repo, passphrase_file) as repository:
        printing.show({"keys": list_keys(repository)}, lambda found: tables.keys(found["keys"]), as_json=as_json)
    return ExitCode.DONE


@keys.command(
    epilog=examples(
        "lab-backup repo keys add --repo /srv/backups --label 'anna, 2026'",
        "lab-backup repo keys add --repo /srv/backups --new-passphrase-file /root/new",
    )
)
def add(
    repo: RepoOption,
    label: Annotated[str, typer.Option(metavar="TEXT", help="Whose passphrase it is, for the list.")] = "",
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            readable=False,
            help=f"Read the new passphrase from the first line of FILE. Otherwise {NEW_VARIABLE} is used, or you are asked.",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Let another passphrase open the repository. No data is rewritten."""
    from lab_backup.operations.lifecycle import who
    from lab_backup.operations.repositories import add_key

    with opened(repo, passphrase_file) as repository:
        new = read_passphrase(
            new_passphrase_file,
            variable=NEW_VARIABLE,
            option="--new-passphrase-file",
            prompt="New passphrase",
            confirm=True,
        )
        key = add_key(repository, new, label=label or f"added by {who()}")
    printing.show(key, lambda made: f"Key {made.id} ({made.label}) opens the repository now.", as_json=as_json)
    return ExitCode.DONE


@keys.command(epilog=examples("lab-backup repo keys remove 3f2a --repo /srv/backups"))
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id from `repo keys list`, or its beginning.")],
    repo: RepoOption,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Take a passphrase away. Who has used it may have kept the key itself: this does not change the key."""
    from lab_backup.operations.repositories import remove_key

    with opened(repo, passphrase_file) as repository:
        removed = remove_key(repository, key)
    printing.show(removed, lambda gone: f"Key {gone.id} ({gone.label}) opens the repository no more.", as_json=as_json)
    return ExitCode.DONE
