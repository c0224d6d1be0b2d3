"""`lab-backup demo`: the whole circle on a tiny real virtual machine."""

from lab_backup.cli.exit_codes import ExitCode


def demo() -> int:
    """Make a tiny VM, back it up while it runs, change it, destroy it, restore it, and prove that nothing is lost.

    Takes a few minutes, uses a hypervisor of its own, and leaves nothing behind.
    """
    from rich.console import Console

    from lab_backup.demo.act import run_demo

    return run_demo(Console(stderr=False)) or ExitCode.DONE
