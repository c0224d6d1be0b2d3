"""Options that several commands share, so that they mean the same everywhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONNECT = "qemu:///system"


class ImageFormat(StrEnum):
    """The formats of disk images."""

    RAW = "raw"
    QCOW2 = "qcow2"


RepoOption = Annotated[
    str,
    typer.Option(
        "--repo",
        "-r",
        metavar="URL",
        envvar="LAB_BACKUP_REPO",
        help="The repository: a path, nfs://server/export/path, smb://user@host/share/path, or s3://bucket/prefix?endpoint=…",
    ),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        readable=False,
        help="Read the passphrase from the first line of FILE. Otherwise LAB_BACKUP_PASSPHRASE is used, or you are asked.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout; progress and messages go to stderr.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; warnings and errors still are.")]
ConnectOption = Annotated[
    str,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        envvar="LIBVIRT_DEFAULT_URI",
        help="The libvirt that runs the VM, also a remote one: qemu+ssh://root@host/system.",
    ),
]
BackupArgument = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        show_default=False,
        help="A backup's id, the beginning of one (4 characters or more), or latest:vm/NAME.",
    ),
]


def examples(*lines: str) -> str:
    """Return the end of a command's help: commands to copy, one a line."""
    # \b on a line of its own keeps the help from being wrapped.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
