"""Options that several commands of the service have."""

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        envvar="LAB_BACKUP_DATA_DIR",
        readable=False,
        help="The service's folder.  [default: /var/lib/lab-backup, or one in your home]",
    ),
]
