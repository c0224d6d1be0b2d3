"""`lab-backup demo`: the whole circle on a tiny real virtual machine."""

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import JsonOption


def demo(as_json: JsonOption = False) -> int:
    """Make a tiny VM, back it up while it runs, change it, destroy it, restore it, and prove that nothing is lost.

    Takes a few minutes, uses a hypervisor of its own, and leaves nothing behind.
    """
    from rich.console import Console

    from lab_backup.demo.act import run_demo

    code = run_demo(Console(stderr=as_json))
    if as_json:
        printing.show_json({"passed": code == ExitCode.DONE})
    return code
