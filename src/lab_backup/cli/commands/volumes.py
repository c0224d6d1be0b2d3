"""`lab-backup backup volume`, `restore volume`: single volumes of Podman."""

from typing import Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.commands.containers import DevicesOption, PodmanOption, finish, service
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError
from lab_backup.units import parse_duration


def backup(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.")],
    repo: RepoOption,
    connect: PodmanOption = None,
    pause: Annotated[
        bool,
        typer.Option(
            "--pause",
            help="Pause the containers that mount it for what changed while it was read first. This is the default.",
        ),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop them for that, and start them again.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Let them run on: its files may be of different moments (fuzzy).")
    ] = False,
    pause_limit: Annotated[
        str, typer.Option(metavar="TIME", help="The longest pause; then they run on, and the backup is fuzzy.")
    ] = "10s",
    full: Annotated[bool, typer.Option("--full", help="Read every file; what is known is not stored again.")] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Back up a Podman volume by itself: its files and its settings. Only what changed is read.

    Its files are read while its containers run; they are paused only for those that changed meanwhile.
    """
    from lab_backup.operations.backup_volume import VolumeOptions, backup_volume
    from lab_backup.sources.podman.freeze import Hold

    if sum((pause, stop, live)) > 1:
        raise UsageError("say one of --pause, --stop and --live")
    options = VolumeOptions(
        hold=Hold.STOP if stop else Hold.LIVE if live else Hold.PAUSE,
        pause_limit=float(parse_duration(pause_limit)),
        full=full,
    )
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        made = backup_volume(repository, name, connect=service(connect), options=options, progress=progress)
    printing.tell_all(warnings=made.warnings, notes=made.notes)
    printing.show(made, tables.made, as_json=as_json)
    return ExitCode.WARNINGS if made.warnings else ExitCode.DONE


def restore(
    backup: BackupArgument,
    repo: RepoOption,
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The name of the new volume.")],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="VOLUME", help="The volume's name in the backup, where that holds several.", show_default=False
        ),
    ] = None,
    connect: PodmanOption = None,
    devices: DevicesOption = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Restore a volume as a new volume, out of a backup of its own or of a container."""
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.restore_volume import restore_volume

    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        found = find_backup(repository, backup)
        result = restore_volume(
            repository, found, name, connect=service(connect), to=to, devices=devices, progress=progress
        )
    return finish(result, as_json=as_json)
