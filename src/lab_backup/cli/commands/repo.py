"""`lab-backup repo`: making and describing repositories, and who can open them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.commands.replicate import FROM_VARIABLE
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import given_secret, opened
from lab_backup.cli.options import JsonOption, PassphraseFileOption, RepoOption, examples
from lab_backup.cli.passphrase import NEW_VARIABLE, read_passphrase
from lab_backup.errors import UsageError
from lab_backup.units import parse_duration, parse_size

if TYPE_CHECKING:
    from lab_backup.repository.keys import Secret
    from lab_backup.repository.repository import Repository


class Kdf(StrEnum):
    """The functions that derive a key from a passphrase."""

    ARGON2ID = "argon2id"
    SCRYPT = "scrypt"


OFF = "off"  # in place of a time: backups are not locked

app = typer.Typer(help="Make and describe repositories, and manage their keys.")
keys = typer.Typer(help="List, add, replace and remove the passphrases and key files that open a repository.")
app.add_typer(keys, name="keys")


@app.command(
    epilog=examples(
        "lab-backup repo init /srv/backups",
        "lab-backup repo init file:///mnt/nas/lab --compression zstd:9 --passphrase-file /root/passphrase",
        "lab-backup repo init /mnt/second --like /srv/backups    # for replicate",
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
    like: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Take chunk size and the key of chunk ids from this repository, so that copies between the two move only what is missing.",
        ),
    ] = None,
    from_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help=f"The passphrase of --like; else {FROM_VARIABLE}, or you are asked."
        ),
    ] = None,
    immutable: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Lock backups for so long, such as 30d, against removal by anybody; see `repo immutable`.",
        ),
    ] = OFF,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Make a new repository.

    Without its passphrase or its recovery sheet nobody can read it again, so print the sheet next.
    """
    from lab_backup.operations.repositories import init_repository

    size, locked_for = parse_size(chunk_size), _period(immutable)
    passphrase = None if no_encryption else _first_secret(passphrase_file)
    with _other(like, from_passphrase_file) as other:
        info = init_repository(
            url,
            passphrase=passphrase,
            chunk_size=size,
            compression=compression,
            encryption=not no_encryption,
            like=other,
            locked_for=locked_for,
        )
    printing.show(info, tables.repository, as_json=as_json)
    if not no_encryption:
        printing.tell("hint", f"print the recovery sheet and lock it away: lab-backup repo recovery-sheet --repo {url}")
    return ExitCode.DONE


def _period(text: str) -> int:
    """Return for how many seconds backups are to be locked. Raises UsageError."""
    seconds = 0 if text == OFF else parse_duration(text)
    if text != OFF and seconds <= 0:
        raise UsageError("that is no time at all", hint=f"to lock nothing from now on, say: {OFF}")
    return seconds


def _first_secret(passphrase_file: Path | None) -> "Secret":
    """Return what is to open the new repository: what the environment names, else a passphrase typed twice."""
    from lab_backup.cli.key_file import new_key_file

    return given_secret(passphrase_file, read_key=new_key_file) or read_passphrase(None, confirm=True)


@contextmanager
def _other(url: str | None, passphrase_file: Path | None) -> Iterator["Repository | None"]:
    """Open the repository that the new one is to be like, if there is one."""
    if url is None:
        yield None
        return
    option, prompt = "--from-passphrase-file", "Passphrase of --like"
    with opened(url, passphrase_file, variable=FROM_VARIABLE, option=option, prompt=prompt) as repository:
        yield repository


@app.command(epilog=examples("lab-backup repo info --repo /srv/backups"))
def info(repo: RepoOption, passphrase_file: PassphraseFileOption = None, as_json: JsonOption = False) -> ExitCode:
    """Describe the repository: its id, its settings, and how much it holds."""
    from lab_backup.operations.repositories import repository_info

    with opened(repo, passphrase_file) as repository:
        printing.show(repository_info(repository), tables.repository, as_json=as_json)
    return ExitCode.DONE


@app.command(
    epilog=examples(
        "lab-backup repo immutable 30d --repo s3://backups/lab?endpoint=https://s3.example",
        "lab-backup repo immutable off --repo /srv/backups",
    )
)
def immutable(
    period: Annotated[str, typer.Argument(metavar="TIME", help="Such as 30d; `off` for no longer.")],
    repo: RepoOption,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Lock backups for a time, in which nobody can remove them: neither by this program nor past it.

    Needs a bucket with Object Lock, or a local file system with immutable files, as root. Run `gc` more often than a quarter of the time:
    it prolongs the locks of what newer backups still need. A lock that is laid stays until it ends.
    """
    from lab_backup.operations.repositories import lock_backups

    seconds = _period(period)
    with opened(repo, passphrase_file) as repository:
        printing.show(lock_backups(repository, seconds), tables.repository, as_json=as_json)
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
    """List the passphrases and key files that open the repository, by id, kind and label."""
    from lab_backup.operations.repositories import list_keys

    with opened(repo, passphrase_file) as repository:
        printing.show({"keys": list_keys(repository)}, lambda found: tables.keys(found["keys"]), as_json=as_json)
    return ExitCode.DONE


NewPassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        readable=False,
        help=f"Read the new passphrase from the first line of FILE. Otherwise {NEW_VARIABLE} is used, or you are asked.",
    ),
]
NewKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        readable=False,
        help="Take the random bytes in FILE in place of a passphrase; made if it is not there.",
    ),
]
VaultTransitOption = Annotated[
    str | None,
    typer.Option(
        metavar="MOUNT/KEY", help="Let this key of Vault's transit engine open it; see VAULT_ADDR in docs/cli.md."
    ),
]
KdfOption = Annotated[Kdf, typer.Option(help="How the wrapping key is derived from a passphrase.")]


def _new_secret(passphrase_file: Path | None, key_file: Path | None, vault_transit: str | None) -> "Secret":
    if sum(given is not None for given in (passphrase_file, key_file, vault_transit)) > 1:
        raise UsageError("give one of --new-passphrase-file, --new-key-file and --vault-transit")
    if vault_transit is not None:
        from lab_backup.security.vault_access import transit

        return transit(vault_transit, os.environ)
    if key_file is not None:
        from lab_backup.cli.key_file import new_key_file

        return new_key_file(key_file)
    option, prompt = "--new-passphrase-file", "New passphrase"
    return read_passphrase(passphrase_file, variable=NEW_VARIABLE, option=option, prompt=prompt, confirm=True)


@keys.command(
    epilog=examples(
        "lab-backup repo keys add --repo /srv/backups --label 'anna, 2026'",
        "lab-backup repo keys add --repo /srv/backups --new-passphrase-file /root/new --kdf scrypt",
        "lab-backup repo keys add --repo /srv/backups --new-key-file /root/lab-backup.key",
    )
)
def add(
    repo: RepoOption,
    label: Annotated[str, typer.Option(metavar="TEXT", help="Whose key it is, for the list.")] = "",
    new_passphrase_file: NewPassphraseFileOption = None,
    new_key_file: NewKeyFileOption = None,
    vault_transit: VaultTransitOption = None,
    kdf: KdfOption = Kdf.ARGON2ID,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Let another passphrase or key file open the repository. No data is rewritten."""
    from lab_backup.operations.lifecycle import who
    from lab_backup.operations.repositories import add_key

    with opened(repo, passphrase_file) as repository:
        new = _new_secret(new_passphrase_file, new_key_file, vault_transit)
        key = add_key(repository, new, label=label or f"added by {who()}", kdf=kdf.value)
    printing.show(key, lambda made: f"Key {made.id} ({made.label}) opens the repository now.", as_json=as_json)
    return ExitCode.DONE


@keys.command(
    epilog=examples(
        "lab-backup repo keys rotate 3f2a --repo /srv/backups",
        "lab-backup repo keys rotate 3f2a --repo /srv/backups --new-key-file /root/lab-backup-2027.key",
    )
)
def rotate(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id from `repo keys list`, or its beginning.")],
    repo: RepoOption,
    new_passphrase_file: NewPassphraseFileOption = None,
    new_key_file: NewKeyFileOption = None,
    vault_transit: VaultTransitOption = None,
    kdf: KdfOption = Kdf.ARGON2ID,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Replace a key by a new passphrase or key file. The old one goes when the new one is in place; no data is rewritten."""
    from lab_backup.operations.repositories import find_key, rotate_key

    with opened(repo, passphrase_file) as repository:
        old = find_key(repository, key)
        made = rotate_key(
            repository, old.id, _new_secret(new_passphrase_file, new_key_file, vault_transit), kdf=kdf.value
        )
    printing.show(
        made, lambda new: f"Key {new.id} ({new.label}) opens the repository in place of {old.id}.", as_json=as_json
    )
    return ExitCode.DONE


@keys.command(epilog=examples("lab-backup repo keys remove 3f2a --repo /srv/backups"))
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id from `repo keys list`, or its beginning.")],
    repo: RepoOption,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Take a passphrase or key file away. Who has used it may have kept the key itself: this does not change the key."""
    from lab_backup.operations.repositories import remove_key

    with opened(repo, passphrase_file) as repository:
        removed = remove_key(repository, key)
    printing.show(removed, lambda gone: f"Key {gone.id} ({gone.label}) opens the repository no more.", as_json=as_json)
    return ExitCode.DONE
