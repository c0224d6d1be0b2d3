"""How long the command line takes until it has shown its help: what every shell completion and every script pays."""

from typing import Any

from measure import middle, run
from peers import LAB_BACKUP


def measure_start(runs: int) -> dict[str, Any]:
    """Return the median seconds of `lab-backup --help`."""
    run([LAB_BACKUP, "--help"])  # once for the byte code
    cost = middle(run([LAB_BACKUP, "--help"]) for _ in range(runs))
    return {"seconds": cost.seconds, "peak": cost.peak}
