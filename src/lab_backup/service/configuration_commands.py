"""`lab-backup config`: what the service is set up with, as a YAML file."""

import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import JsonOption, examples
from lab_backup.errors import UsageError
from lab_backup.service.options import DataOption

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab_backup.catalog.base import Session
    from lab_backup.catalog.configuration import Change

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", readable=False, help="The document, YAML or JSON; - is stdin.")
]
MOST_BYTES = 4 * 1024 * 1024
program = typer.Typer(
    no_args_is_help=True, help="What the service is set up with, as a file to keep under version control."
)


@contextmanager
def _session(data_dir: Path | None) -> "Iterator[Session]":
    from lab_backup.catalog.base import connect
    from lab_backup.service.folders import settings_of

    engine, sessions = connect(settings_of(data_dir).database_url)
    try:
        with sessions() as session:
            yield session
    finally:
        engine.dispose()


@program.command("export", epilog=examples("lab-backup config export > lab-backup.yaml"))
def export(data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Print hosts, storages, schedules, tags and settings of the running service. There are no secrets in it."""
    import msgspec
    import yaml

    from lab_backup.catalog.configuration import export as read

    with _session(data_dir) as session:
        found = msgspec.to_builtins(read(session))
    printing.show(
        found, lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip(), as_json=as_json
    )
    return ExitCode.DONE


@program.command("diff", epilog=examples("lab-backup config diff lab-backup.yaml"))
def diff(file: FileArgument, data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Say what `apply` would change. Nothing is."""
    return _apply(file, data_dir, as_json=as_json, keep=False)


@program.command(
    "apply", epilog=examples("lab-backup config apply lab-backup.yaml", "lab-backup config apply - < lab-backup.yaml")
)
def apply(file: FileArgument, data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Make the running service as the document says. Applied again, nothing is changed."""
    return _apply(file, data_dir, as_json=as_json, keep=True)


def _apply(file: Path, data_dir: Path | None, *, as_json: bool, keep: bool) -> ExitCode:
    from lab_backup.catalog import configuration

    wanted = configuration.parse(_read(file))
    with _session(data_dir) as session:
        changes = configuration.apply(session, wanted)
        if keep:
            session.commit()
    printing.show(
        {"changes": [asdict(change) for change in changes], "applied": keep},
        lambda _: _said(changes, keep=keep),
        as_json=as_json,
    )
    return ExitCode.DONE


def _read(file: Path) -> Any:
    import yaml

    try:
        data = sys.stdin.buffer.read(MOST_BYTES + 1) if str(file) == "-" else file.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{file} is larger than a configuration can be")
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is neither YAML nor JSON", hint=" ".join(str(error).split())[:200]) from error


def _said(changes: "Sequence[Change]", *, keep: bool) -> str:
    if not changes:
        return "Nothing differs." if not keep else "Nothing was changed."
    words = [
        f"{change.what:8} {change.part} {change.name}" + (f" ({', '.join(change.fields)})" if change.fields else "")
        for change in changes
    ]
    return "\n".join(words)
