"""Which chunk size a repository should have: speed, size, increments, index."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import run_yardstick, warm
from images import Images
from lab_backup.units import KiB, MiB
from measure import middle
from peers import LabBackup

SIZES = [64 * KiB, 128 * KiB, 256 * KiB, 512 * KiB, 1 * MiB, 4 * MiB]


def measure_sizes(images: Images, folder: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return for each chunk size what a full backup and the scattered writes cost."""
    rows = []
    for size in SIZES:
        say(f"chunks of {size // KiB} KiB")
        full, small, grown, stored = [], [], 0, 0
        pipeline = [run_yardstick("pipeline", images.base, folder, "--chunk-size", str(size)) for _ in range(runs)]
        for _ in range(runs):
            tool = _tool(size)(folder / "chunks")
            warm(images.changed)
            full.append(tool.backup(images.changed))
            stored = tool.stored()
            warm(images.scattered)
            small.append(tool.backup(images.scattered))
            grown = tool.stored() - stored
            tool.remove()
        middle_full = middle(full)
        rows.append(
            {
                "size": size,
                "pipeline": sorted(pipeline)[len(pipeline) // 2],
                "full": middle_full.seconds,
                "peak_anonymous": middle_full.peak_anonymous,
                "stored": stored,
                "scattered": middle(small).seconds,
                "scattered_stored": grown,
                "dirty": len(images.dirty_chunks(size)) * size,
            }
        )
    return {"rows": rows, "writes": images.shape.scattered}


def _tool(size: int) -> type[LabBackup]:
    class Sized(LabBackup):
        """The same, with another chunk size."""

        init_options = ("--chunk-size", str(size))

    return Sized
