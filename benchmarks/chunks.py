"""Which chunk size a repository should have: speed, size, increments, index."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import run_yardstick, warm
from images import Images
from lab_backup.units import KiB, MiB, TiB
from measure import middle, stored_bytes
from peers import LabBackup, answer

SIZES = [64 * KiB, 128 * KiB, 256 * KiB, 512 * KiB, 1 * MiB, 4 * MiB]


def measure_sizes(images: Images, folder: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return for each chunk size what a full backup and the scattered writes cost, and what the local index of 10 TiB takes.

    The index grows with the number of chunks alone, so its size follows from the one that this image made.
    """
    rows = []
    for size in SIZES:
        say(f"chunks of {size // KiB} KiB")
        full, small, grown, stored, index = [], [], 0, 0, 0
        pipeline = [run_yardstick("pipeline", images.base, folder, "--chunk-size", str(size)) for _ in range(runs)]
        for _ in range(runs):
            tool = _tool(size)(folder / "chunks")
            warm(images.changed)
            full.append(tool.backup(images.changed))
            stored = tool.stored()
            index = stored_bytes(folder / "chunks" / "cache")
            warm(images.scattered)
            small.append(tool.backup(images.scattered))
            grown = tool.stored() - stored
            tool.remove()
        middle_full = middle(full)
        read = int(str(answer(middle_full)["bytes_read"]))
        rows.append(
            {
                "size": size,
                "pipeline": sorted(pipeline)[len(pipeline) // 2],
                "full": middle_full.seconds,
                "peak_anonymous": middle_full.peak_anonymous,
                "stored": stored,
                "scattered": middle(small).seconds,
                "scattered_stored": grown,
                "dirty": images.dirty_chunks(size) * size,
                "index_10_tib": index * 10 * TiB // max(read, 1),
            }
        )
    return {"rows": rows, "writes": images.shape.scattered}


def _tool(size: int) -> type[LabBackup]:
    class Sized(LabBackup):
        """The same, with another chunk size."""

        init_options = ("--chunk-size", str(size))

    return Sized
