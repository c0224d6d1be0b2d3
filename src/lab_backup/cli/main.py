"""The program `lab-backup`: its commands put together, and the one place where errors become exit statuses."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lab_backup import __version__
from lab_backup.cli import failures
from lab_backup.cli.commands import backup, catalogue, checkpoints, demo, export, gc, lifecycle, repo, restore, verify
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import examples
from lab_backup.cli.signals import interruptible

NAME = "lab-backup"
ORDER = (
    "repo", "backup", "list", "show", "restore", "verify", "delete", "undelete", "protect", "unprotect",
    "gc", "export", "checkpoints", "demo",
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
        with interruptible():
            code = self._run(arguments, extra)
        sys.exit(code)

    def _run(self, arguments: list[str], extra: dict[str, Any]) -> int:
        as_json = "--json" in arguments
        try:
            result = super().main(arguments or ["--help"], **extra)
            if result == ExitCode.INTERRUPTED:  # what Typer makes of KeyboardInterrupt
                raise KeyboardInterrupt
            sys.stdout.flush()
        except SystemExit:  # shell completion ends so
            raise
        except BrokenPipeError:  # `lab-backup list | head` has seen enough
            return _abandon_stdout()
        except BaseException as error:  # noqa: BLE001  whatever happens ends in one sentence
            return _report(error, as_json=as_json)
        return int(result or 0)


def _report(error: BaseException, *, as_json: bool) -> int:
    try:
        return failures.report(error, as_json=as_json)
    except OSError:  # stdout or stderr is closed or full: nobody can be told more than the exit status
        _abandon_stdout()
        return ExitCode.FAILED


def _abandon_stdout() -> int:
    """Keep the interpreter from failing once more when it flushes stdout at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
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
    "gc",
    short_help="Give back the space that no backup needs.",
    epilog=examples(
        "lab-backup gc --repo /srv/backups",
        "lab-backup gc --repo /srv/backups --dry-run",
        "lab-backup gc --repo /srv/backups --grace 0 --exclusive    # the disk is full, and no backup is running",
    ),
)(gc.gc)
app.command("export", epilog=examples("lab-backup export latest:vm/web --repo /srv/backups --to /media/usb/web.tar"))(
    export.export
)
app.add_typer(checkpoints.app, name="checkpoints")
app.command("demo", short_help="See it all work on a tiny real VM.", epilog=examples("lab-backup demo"))(demo.demo)


def run() -> NoReturn:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # Names from elsewhere may have characters that this terminal's encoding lacks.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    app()
    raise AssertionError
