"""`lab-backup backup pod`, `restore pod`: pods of Podman with all their containers."""

from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.commands.containers import DevicesOption, PodmanOption, service
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError
from lab_backup.units import parse_duration

if TYPE_CHECKING:
    from lab_backup.operations.restore_pod import PodResult


def backup(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pod's name or id.")],
    repo: RepoOption,
    connect: PodmanOption = None,
    pause: Annotated[
        bool,
        typer.Option(
            "--pause",
            help="Pause all its containers together for what changed while it was read first. This is the default.",
        ),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop them for that, and start them again.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Let them run on: files may be of different moments (fuzzy).")
    ] = False,
    pause_limit: Annotated[
        str, typer.Option(metavar="TIME", help="The longest pause; then they run on, and the backup is fuzzy.")
    ] = "10s",
    bind_mounts: Annotated[
        bool, typer.Option("--bind-mounts", help="Also the folders of the host that are mounted in them.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every file; what is known is not stored again.")] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Back up a Podman pod: its settings and all its containers, of one moment. Only what changed is read."""
    from lab_backup.operations.backup_container import ContainerOptions
    from lab_backup.operations.backup_pod import backup_pod
    from lab_backup.sources.podman.freeze import Hold

    if sum((pause, stop, live)) > 1:
        raise UsageError("say one of --pause, --stop and --live")
    options = ContainerOptions(
        hold=Hold.STOP if stop else Hold.LIVE if live else Hold.PAUSE,
        pause_limit=float(parse_duration(pause_limit)),
        bind_mounts=bind_mounts,
        full=full,
    )
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        made = backup_pod(repository, name, connect=service(connect), options=options, progress=progress)
    printing.tell_all(warnings=made.warnings, notes=made.notes)
    printing.show(made, tables.made, as_json=as_json)
    return ExitCode.WARNINGS if made.warnings else ExitCode.DONE


def restore(
    backup: BackupArgument,
    repo: RepoOption,
    connect: PodmanOption = None,
    name: Annotated[
        str | None, typer.Option(metavar="NEW", help="The pod's new name; its containers are called NEW-….")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the containers and volumes of that name; the pod stays.")
    ] = False,
    volume_suffix: Annotated[
        str, typer.Option(metavar="SUFFIX", help="Added to the names of its volumes, to restore beside the old ones.")
    ] = "",
    start: Annotated[bool, typer.Option("--start", help="Start the containers that ran.")] = False,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Grant what it wants of the host, such as --privileged or bind mounts.")
    ] = False,
    devices: DevicesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done, and what is in the way.")
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Bring a pod back with all its containers, their images, networks, volumes and files, then compare them with the backup.

    Nothing that exists is touched without --overwrite, and a failure takes back what was made.
    """
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.restore_pod import restore_pod
    from lab_backup.sources.podman.restore import Options

    options = Options(name=name, overwrite=overwrite, volume_suffix=volume_suffix, trusted=trusted)
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        result = restore_pod(
            repository,
            find_backup(repository, backup),
            connect=service(connect),
            options=options,
            start=start,
            devices=devices,
            dry_run=dry_run,
            progress=progress,
        )
    printing.tell_all(warnings=result.warnings, notes=result.notes)
    printing.show(result, lambda done: _told(done, dry_run=dry_run), as_json=as_json)
    if dry_run and result.conflicts:
        return ExitCode.TARGET_EXISTS
    return ExitCode.WARNINGS if result.warnings else ExitCode.DONE


def _told(result: "PodResult", *, dry_run: bool) -> str:
    made = [f"container {name}" for name in result.containers]
    made += [f"volume {name}" for name in result.volumes] + [f"network {name}" for name in result.networks]
    if not dry_run:
        state = "and runs" if result.started else "and is not started"
        return f"Pod {result.pod} is restored, with {', '.join(made)}, {state}."
    lines = [f"Pod {result.pod} would be restored, with {', '.join(made)}."]
    lines += [f"in the way: {what}" for what in result.conflicts]
    lines += [f"would be replaced: {what}" for what in result.replaces]
    return "\n".join(lines)
