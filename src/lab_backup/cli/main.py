"""The program `lab-backup`: its commands put together, and the one place where errors become exit statuses."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lab_backup import __version__
from lab_backup.cli import failures, streams
from lab_backup.cli.commands import (
    backup,
    catalogue,
    checkpoints,
    containers,
    demo,
    export,
    gc,
    lifecycle,
    pods,
    prune,
    replicate,
    repo,
    restore,
    storage,
    verify,
    volumes,
)
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import examples
from lab_backup.cli.printing import OutputClosedError
from lab_backup.cli.signals import interruptible

NAME = "lab-backup"
ORDER = (
    "repo", "backup", "list", "show", "files", "restore", "verify", "delete", "undelete", "protect", "unprotect",
    "prune", "gc", "replicate", "export", "storage", "checkpoints", "demo",
    "up", "api", "worker", "beat", "migrate", "reset-password", "verify-audit", "rotate-master-key", "config",
)  # fmt: skip


class Program(TyperGroup):
    """The group of all commands. It ends the program in the one way that `docs/cli.md` describes."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # Typer's own context is private
        """Return the names in the order in which a user meets them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run a command line and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra.update(prog_name=NAME, standalone_mode=False)
        code = int(ExitCode.INTERRUPTED)
        with suppress(KeyboardInterrupt), interruptible():
            code = self._run(arguments, extra)
        sys.exit(code)

    def _run(self, arguments: list[str], extra: dict[str, Any]) -> int:
        try:
            code = int(super().main(arguments or ["--help"], **extra) or ExitCode.DONE)
            if code == ExitCode.INTERRUPTED:  # what Typer makes of KeyboardInterrupt
                raise KeyboardInterrupt
        except SystemExit:  # shell completion ends so, and a --help whose reader has left
            raise
        except BaseException as error:  # noqa: BLE001  whatever happens ends in one sentence
            happened = error.cause if isinstance(error, _Passed) else error
            return _end(happened, as_json="--json" in arguments)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and bring errors past Typer that it would take for something else."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as error:
            raise _Passed(error) from error


class _Passed(Exception):  # noqa: N818  not an error but its envelope
    """Carries `cause`, which is what happened."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


def _end(error: BaseException, *, as_json: bool) -> int:
    try:
        if not isinstance(error, OutputClosedError):
            return failures.report(error, as_json=as_json)
    except (OSError, OutputClosedError):
        pass  # stdout or stderr is full or closed: nothing but the exit status can tell of it
    streams.abandon_stdout()
    return ExitCode.FAILED


app = typer.Typer(
    name=NAME,
    cls=Program,
    # Plain help comes up in half the time of the drawn one.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples(
        "lab-backup repo init /srv/backups",
        "lab-backup backup vm web --repo /srv/backups",
        "lab-backup list --repo /srv/backups",
        "lab-backup restore vm latest:vm/web --repo /srv/backups --name web-again --start",
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{NAME} {__version__}\n")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Incremental, deduplicated, encrypted backups of virtual machines."""
    del version


_BACKUP = "lab-backup {} 8f41b7c24cbd --repo /srv/backups"

app.add_typer(repo.app, name="repo")
app.add_typer(backup.app, name="backup")
app.command(
    "list",
    epilog=examples("lab-backup list --repo /srv/backups", "lab-backup list --source vm/web --json | jq .backups"),
)(catalogue.list_backups)
app.command("show", epilog=examples("lab-backup show latest:vm/web --repo /srv/backups"))(catalogue.show)
app.command(
    "files",
    short_help="List the files in a backup of a container.",
    epilog=examples(
        "lab-backup files latest:container/web --repo /srv/backups --volume web-data",
        "lab-backup files latest:container/web --repo /srv/backups --rootfs etc --recursive",
    ),
)(containers.list_files)
backup.app.command(
    "container",
    epilog=examples(
        "lab-backup backup container web --repo /srv/backups",
        "lab-backup backup container db --repo /srv/backups --pre 'psql -U postgres -c CHECKPOINT'",
        "lab-backup backup container web --repo /srv/backups --stop --volumes web-data,web-config --bind-mounts",
    ),
)(containers.backup)
backup.app.command(
    "volume",
    epilog=examples(
        "lab-backup backup volume web-data --repo /srv/backups",
        "lab-backup backup volume web-data --repo /srv/backups --live",
    ),
)(volumes.backup)
backup.app.command(
    "pod",
    epilog=examples(
        "lab-backup backup pod web --repo /srv/backups", "lab-backup backup pod web --repo /srv/backups --stop"
    ),
)(pods.backup)
restore.app.command(
    "container",
    epilog=examples(
        "lab-backup restore container latest:container/web --repo /srv/backups --start",
        "lab-backup restore container latest:container/web --repo /srv/backups --dry-run",
        "lab-backup restore container 8f41b7c24cbd --repo /srv/backups --name web-again --volume-suffix -again",
    ),
)(containers.restore)
restore.app.command(
    "volume",
    epilog=examples(
        "lab-backup restore volume latest:volume/web-data --repo /srv/backups --to web-data-again",
        "lab-backup restore volume latest:container/web web-data --repo /srv/backups --to web-data-again",
    ),
)(volumes.restore)
restore.app.command(
    "pod",
    epilog=examples(
        "lab-backup restore pod latest:pod/web --repo /srv/backups --start",
        "lab-backup restore pod latest:pod/web --repo /srv/backups --name web-again --volume-suffix=-again",
    ),
)(pods.restore)
restore.app.command(
    "files",
    epilog=examples(
        "lab-backup restore files latest:container/web etc/nginx --repo /srv/backups --rootfs --to /tmp/nginx",
        "lab-backup restore files latest:container/db pgdata/postgresql.conf --repo /srv/backups --volume db --to /tmp/conf",
    ),
)(containers.files)
app.add_typer(restore.app, name="restore")
app.command(
    "verify",
    short_help="Check that all is there and unchanged.",
    epilog=examples(
        "lab-backup verify --repo /srv/backups",
        "lab-backup verify --repo /srv/backups --sample 5%",
        "lab-backup verify latest:vm/web --repo /srv/backups --read-data",
    ),
)(verify.verify)
app.command("delete", epilog=examples(_BACKUP.format("delete"), _BACKUP.format("delete") + " --now"))(lifecycle.delete)
app.command("undelete", short_help="Take a deletion back.", epilog=examples(_BACKUP.format("undelete")))(
    lifecycle.undelete
)
app.command("protect", short_help="Keep a backup from being deleted.", epilog=examples(_BACKUP.format("protect")))(
    lifecycle.protect
)
app.command("unprotect", short_help="Allow its deletion again.", epilog=examples(_BACKUP.format("unprotect")))(
    lifecycle.unprotect
)
app.command(
    "prune",
    short_help="Delete what no retention rule keeps.",
    epilog=examples(
        "lab-backup prune --repo /srv/backups --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run",
        "lab-backup prune --repo /srv/backups --keep-last 3 --keep-within 14d --source vm/web",
    ),
)(prune.prune)
app.command(
    "gc",
    short_help="Give back the space that no backup needs.",
    epilog=examples(
        "lab-backup gc --repo /srv/backups",
        "lab-backup gc --repo /srv/backups --dry-run",
        "lab-backup gc --repo /srv/backups --grace 0 --exclusive    # the disk is full, and no backup is running",
    ),
)(gc.gc)
app.command(
    "replicate",
    short_help="Copy backups to another repository.",
    epilog=examples(
        "lab-backup replicate --from /srv/backups --to /mnt/usb/backups --all",
        "lab-backup replicate --from /srv/backups --to /mnt/usb/backups --source vm/web --read-back",
        "lab-backup replicate --from /srv/backups --to /mnt/usb/backups latest:vm/web",
    ),
)(replicate.replicate)
app.command("export", epilog=examples("lab-backup export latest:vm/web --repo /srv/backups --to /media/usb/web.tar"))(
    export.export
)
app.add_typer(storage.app, name="storage")
app.add_typer(checkpoints.app, name="checkpoints")
app.command("demo", short_help="See it all work on a tiny real VM.", epilog=examples("lab-backup demo"))(demo.demo)


def run() -> NoReturn:
    """Run the command line of this process and exit."""
    streams.prepare()
    app()
    raise AssertionError
