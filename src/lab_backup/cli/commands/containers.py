"""`lab-backup backup container`, `restore container`, and single files of both: Podman."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing, tables
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.opening import opened
from lab_backup.cli.options import BackupArgument, JsonOption, PassphraseFileOption, QuietOption, RepoOption
from lab_backup.cli.progress import shown
from lab_backup.errors import UsageError
from lab_backup.units import parse_duration

if TYPE_CHECKING:
    from lab_backup.operations.restore_container import ContainerResult

PodmanOption = Annotated[
    str | None,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        envvar="CONTAINER_HOST",
        help="The Podman service: unix:///run/podman/podman.sock, ssh://user@host, tcp://host:port?tls=DIR.  [default: this user's own]",
    ),
]
DevicesOption = Annotated[bool, typer.Option("--devices", help="Restore device nodes as well.")]


def service(connect: str | None) -> str:
    """Return the service that is meant, this user's own where none was named."""
    from lab_backup.sources.podman.address import default_service

    return connect or default_service()


def backup(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The container's name or id.")],
    repo: RepoOption,
    connect: PodmanOption = None,
    pause: Annotated[
        bool, typer.Option("--pause", help="Pause it for what changed while it was read first. This is the default.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it for that, and start it again.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Let it run on: its files may be of different moments (fuzzy).")
    ] = False,
    pause_limit: Annotated[
        str, typer.Option(metavar="TIME", help="The longest pause; then it runs on, and the backup is fuzzy.")
    ] = "10s",
    pre: Annotated[
        str | None,
        typer.Option(metavar="CMD", help="Run this by the shell in the container before, such as a database's dump."),
    ] = None,
    post: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this after, whatever happens, also if the backup is killed.")
    ] = None,
    command_timeout: Annotated[str, typer.Option(metavar="TIME", help="How long either command may take.")] = "5m",
    volumes: Annotated[str, typer.Option(metavar="all|NAME,…", help="Only these volumes.")] = "all",
    bind_mounts: Annotated[
        bool, typer.Option("--bind-mounts", help="Also the folders of the host that are mounted in it.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every file; what is known is not stored again.")] = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Back up a Podman container: image, settings, networks, its own files and its volumes. Only what changed is read.

    Its files are read while it runs; it is paused only for those that changed meanwhile.
    """
    from lab_backup.operations.backup_container import ContainerOptions, backup_container
    from lab_backup.sources.podman.freeze import Hold, Hooks

    if sum((pause, stop, live)) > 1:
        raise UsageError("say one of --pause, --stop and --live")
    options = ContainerOptions(
        hold=Hold.STOP if stop else Hold.LIVE if live else Hold.PAUSE,
        hooks=Hooks(before=pre, after=post, timeout=float(parse_duration(command_timeout))),
        pause_limit=float(parse_duration(pause_limit)),
        volumes=None if volumes == "all" else tuple(part for part in volumes.split(",") if part),
        bind_mounts=bind_mounts,
        full=full,
    )
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        made = backup_container(repository, name, connect=service(connect), options=options, progress=progress)
    printing.tell_all(warnings=made.warnings, notes=made.notes)
    printing.show(made, tables.made, as_json=as_json)
    return ExitCode.WARNINGS if made.warnings else ExitCode.DONE


def restore(
    backup: BackupArgument,
    repo: RepoOption,
    connect: PodmanOption = None,
    name: Annotated[str | None, typer.Option(metavar="NEW", help="The container's new name.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the container and the volumes of that name.")
    ] = False,
    volume_suffix: Annotated[
        str, typer.Option(metavar="SUFFIX", help="Added to the names of its volumes, to restore beside the old ones.")
    ] = "",
    start: Annotated[bool, typer.Option("--start", help="Start it when all is restored.")] = False,
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
    """Bring a container back with image, networks, volumes and files, then compare it with the backup.

    Nothing that exists is touched without --overwrite, and a failure takes back what was made.
    """
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.restore_container import restore_container
    from lab_backup.sources.podman.restore import Options

    options = Options(name=name, overwrite=overwrite, volume_suffix=volume_suffix, trusted=trusted)
    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        found = find_backup(repository, backup)
        result = restore_container(
            repository,
            found,
            connect=service(connect),
            options=options,
            start=start,
            devices=devices,
            dry_run=dry_run,
            progress=progress,
        )
    return finish(result, as_json=as_json, dry_run=dry_run)


def finish(result: "ContainerResult", *, as_json: bool, dry_run: bool = False) -> ExitCode:
    """Tell what a restore did, and return the exit status."""
    printing.tell_all(warnings=result.warnings, notes=result.notes)
    printing.show(result, lambda done: tables.container(done, dry_run=dry_run), as_json=as_json)
    if dry_run and result.conflicts:
        return ExitCode.TARGET_EXISTS
    return ExitCode.WARNINGS if result.warnings else ExitCode.DONE


def files(
    backup: BackupArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files and folders, as `files` lists them.")],
    repo: RepoOption,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", readable=False, help="A new or empty folder.")],
    volume: Annotated[str | None, typer.Option(metavar="NAME", help="Of this volume.")] = None,
    rootfs: Annotated[bool, typer.Option("--rootfs", help="Of the container's own files.")] = False,
    devices: DevicesOption = False,
    passphrase_file: PassphraseFileOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> ExitCode:
    """Restore single files and folders into a folder of this host, with all their metadata."""
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.files import choose_tree, restore_files

    with opened(repo, passphrase_file) as repository, shown(quiet=quiet) as progress:
        found = find_backup(repository, backup)
        tree = choose_tree(found, volume=volume, rootfs=rootfs)
        result = restore_files(repository, found, tree, paths, to=to, devices=devices, progress=progress)
    printing.tell_all(warnings=result.warnings)
    printing.show(result, lambda done: f"{done.files} files are in {done.to}.", as_json=as_json)
    return ExitCode.WARNINGS if result.warnings else ExitCode.DONE


def list_files(
    backup: BackupArgument,
    repo: RepoOption,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file or folder.", show_default=False)] = "",
    volume: Annotated[str | None, typer.Option(metavar="NAME", help="Of this volume.")] = None,
    rootfs: Annotated[bool, typer.Option("--rootfs", help="Of the container's own files.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="With all that is in its folders.")] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """List the files in a backup of a container."""
    from lab_backup.operations.catalogue import find_backup
    from lab_backup.operations.files import choose_tree
    from lab_backup.operations.files import list_files as look

    with opened(repo, passphrase_file) as repository:
        found = find_backup(repository, backup)
        tree = choose_tree(found, volume=volume, rootfs=rootfs)
        listed = look(repository, tree, path, recursive=recursive)
    printing.show({"files": listed}, lambda answer: tables.files(answer["files"]), as_json=as_json)
    return ExitCode.DONE
