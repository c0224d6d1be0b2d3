"""The program `lab-backup`, whole: the operations and the service. The root above all others."""

from typing import NoReturn

from lab_backup.cli import main
from lab_backup.service import commands

commands.add_to(main.app)
app = main.app


def run() -> NoReturn:
    """Run the command line of this process and exit."""
    main.run()
