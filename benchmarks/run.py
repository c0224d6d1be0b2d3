"""Measure everything that is promised about speed and size, next to the tools that people use today.

    python benchmarks/run.py                       all parts, three runs each: an hour or so; results in RESULTS.md
    python benchmarks/run.py --size small --runs 1 --output -      a check of the benchmarks themselves, in minutes
    python benchmarks/run.py --parts image,start   some parts; the others keep their last figures

The peers come from Debian: apt-get install --no-install-recommends restic borgbackup qemu-utils virtnbdbackup
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chunks
import compare
import guest
import index
import machine
import report
import service
import start
import storages
from images import SHAPES, Images, make_images
from peers import TOOLS, Tool

INDEX_COUNTS = {"full": 10_000_000, "small": 200_000}
HERE = Path(__file__).parent
MAX_LOAD = 0.7  # more than this before the start, and something else is running

TOOL_NAMES = list(dict.fromkeys([tool.name for tool in TOOLS] + [tool.name for tool in guest.TOOLS]))

Figures = dict[str, Any]  # what a part measured, as JSON


def image_part(options: argparse.Namespace, images: Images, folder: Path) -> Figures:
    """Compare the tools on an image file. Their runs alternate, so that a change of the machine hits all of them."""
    tools: list[type[Tool]] = [tool for tool in TOOLS if tool.name in options.tools]
    done: dict[str, list[dict[compare.Step, compare.Done]]] = {tool.name: [] for tool in tools}
    yardsticks: dict[str, list[float]] = {name: [] for name in compare.YARDSTICKS}
    for turn in range(options.runs):
        for name, seconds in yardsticks.items():
            say(f"image, run {turn + 1}: {name}")
            seconds.append(compare.run_yardstick(name, images.base, folder))
        for tool in tools:
            say(f"image, run {turn + 1}: {tool.name}")
            done[tool.name].append(compare.run_tool(tool, images, folder))
    return report.image_figures(images, done, yardsticks)


def chunks_part(options: argparse.Namespace, images: Images, folder: Path) -> Figures:
    """Compare chunk sizes."""
    return chunks.measure_sizes(images, folder, options.runs, say)


def guest_part(options: argparse.Namespace, _: Images, folder: Path) -> Figures:
    """Compare backups of a running guest."""
    return guest.measure_guest(SHAPES[options.size], options.tools, folder, options.runs, say)


def thin_part(options: argparse.Namespace, _: Images, folder: Path) -> Figures:
    """Compare increments of a small and of a large thin disk."""
    return guest.measure_thin(SHAPES[options.size], folder, options.runs, say)


def storages_part(options: argparse.Namespace, images: Images, folder: Path) -> Figures:
    """Compare storages of all kinds."""
    return storages.measure_storages(images, folder, options.runs, say)


def index_part(options: argparse.Namespace, _: Images, folder: Path) -> Figures:
    """Measure a large local index."""
    count = INDEX_COUNTS[options.size]
    say(f"index of {count:,} chunks")
    return index.measure_index(count, folder)


def service_part(options: argparse.Namespace, _: Images, __: Path) -> Figures:
    """Measure lists of the API with a long past behind it, and many who follow one job."""
    return service.measure_service(options.size, say)


def start_part(options: argparse.Namespace, _: Images, __: Path) -> Figures:
    """Measure how long the command line takes to say anything."""
    return start.measure_start(max(options.runs, 5))


PARTS: dict[str, Callable[[argparse.Namespace, Images, Path], Figures]] = {
    "start": start_part,
    "image": image_part,
    "chunks": chunks_part,
    "guest": guest_part,
    "thin": thin_part,
    "storages": storages_part,
    "index": index_part,
    "service": service_part,
}


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the chosen parts and write the report."""
    options = _arguments()
    if machine.load() > MAX_LOAD:
        say(f"warning: the load is {machine.load():.1f}; the figures will be worse than this machine's")
    options.work.mkdir(parents=True, exist_ok=True)
    images = make_images(options.work / f"images-{options.size}", SHAPES[options.size])
    record = options.work / f"figures-{options.size}.json"
    figures: Figures = json.loads(record.read_text()) if record.exists() else {}
    for part in options.parts:
        folder = options.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            figures[part] = PARTS[part](options, images, folder)
        finally:
            shutil.rmtree(folder)
        record.write_text(json.dumps(figures, indent=1))
    text = report.render(figures, machine.describe(options.work), SHAPES[options.size], options.runs)
    if options.output == Path("-"):
        print(text)
    else:
        options.output.write_text(text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="full", help="the image: 6 GiB with 2 GiB of files, or small")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--parts", type=_names(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tools", type=_names(TOOL_NAMES), default=TOOL_NAMES, help=f"some of {','.join(TOOL_NAMES)}")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="needs 25 GiB; its disk is what is measured")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md", help="- for standard output")
    options = parser.parse_args()
    options.work = options.work.absolute()
    return options


def _names(known: Any) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
