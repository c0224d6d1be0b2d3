"""The figures as Markdown, next to what was promised."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from compare import STEPS, Done, Step, combine, compressed_dirty_chunks
from images import Images, Shape
from lab_backup.units import KiB, MiB, TiB, format_size
from peers import TOOLS, answer

CHUNK, BIG_CHUNK = 128 * KiB, 4 * MiB
COMMAND_SECONDS = 0.5  # what a short command may add for start and key derivation
TITLES: Mapping[str, str] = {
    "full": "full backup",
    "unchanged": "unchanged",
    "changed": "{change} changed",
    "scattered": "{scattered} writes of 4 KiB",
    "restore raw": "restore, raw",
    "restore qcow2": "restore, qcow2",
    "verify": "verify all data",
}

Figures = dict[str, Any]


def image_figures(
    images: Images, done: Mapping[str, Sequence[dict[Step, Done]]], yardsticks: Mapping[str, Sequence[float]]
) -> Figures:
    """Return the medians of the part `image` as JSON."""
    tools: Figures = {}
    for name, runs in done.items():
        tools[name] = {
            step: {
                "seconds": result.cost.seconds,
                "cpu_seconds": result.cost.cpu_seconds,
                "peak": result.cost.peak,
                "peak_anonymous": result.cost.peak_anonymous,
                "bytes_read": result.cost.bytes_read,
                "stored": result.stored,
                "reported": _numbers(answer(result.cost)) if name == "lab-backup" else {},
            }
            for step, result in combine(runs).items()
        }
    return {
        "tools": tools,
        "yardsticks": {name: median(seconds) for name, seconds in yardsticks.items()},
        "dirty": {str(size): compressed_dirty_chunks(images, size) for size in (CHUNK, BIG_CHUNK)},
    }


def render(figures: Figures, machine: Sequence[tuple[str, str]], shape: Shape, runs: int) -> str:
    """Return the whole report."""
    parts: list[tuple[str, Callable[[Figures, Shape], Iterable[str]]]] = [
        ("image", _image),
        ("chunks", _chunks),
        ("guest", _guest),
        ("thin", _thin),
        ("index", _index),
        ("storages", _storages),
        ("service", _service),
        ("start", _start),
    ]
    lines = [
        "# Results",
        "",
        f"Made by `make bench`; [README.md](README.md) says what is measured and how. Medians of {runs} runs.",
        "",
        *_table(["Machine", ""], [list(line) for line in machine]),
        "",
        f"The image: {format_size(shape.image)}, ext4, thin, with {format_size(shape.content)} of files of that machine.",
    ]
    if "chunks" in figures and "index" in figures:
        figures["chunks"]["bytes_per_chunk"] = figures["index"]["size"] / figures["index"]["count"]
    for name, write in parts:
        if name in figures:
            lines += ["", *write(figures[name], shape)]
    return "\n".join(lines) + "\n"


def _image(figures: Figures, shape: Shape) -> Iterable[str]:
    tools, yard = figures["tools"], figures["yardsticks"]
    names = [tool.name for tool in TOOLS if tool.name in tools]
    yield "## An image file"
    yield ""
    yield "Seconds of the whole command, its start included:"
    yield ""
    yield from _steps_table(tools, names, shape, lambda row: f"{row['seconds']:.2f}")
    yield ""
    yield "Bytes that the repository grew by:"
    yield ""
    yield from _steps_table(tools, names, shape, lambda row: format_size(row["stored"]), STEPS[:4])
    yield ""
    yield "Bytes read, by all read calls of the process:"
    yield ""
    yield from _steps_table(tools, names, shape, lambda row: format_size(row["bytes_read"]))
    yield ""
    yield "Peak memory, anonymous / all (VmHWM):"
    yield ""
    yield from _steps_table(
        tools, names, shape, lambda row: f"{row['peak_anonymous'] / MiB:.0f} / {row['peak'] / MiB:.0f} MiB"
    )
    yield ""
    yield (
        "lab-backup, restic and Borg encrypt, and sync what they store; qemu-img does neither. Only lab-backup syncs what it restores. All find their "
        "repository in the page cache when they restore and verify. restic and Borg restore to a raw file alone."
    )
    yield ""
    yield "The yardsticks, without any repository:"
    yield ""
    yield from _table(["", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in yard.items()])
    if "lab-backup" in tools:
        yield ""
        yield from _promises(figures)


def _promises(figures: Figures) -> Iterable[str]:
    tools, yard = figures["tools"], figures["yardsticks"]
    own = tools["lab-backup"]
    full, net = own["full"]["seconds"], own["full"]["reported"].get("duration_seconds", own["full"]["seconds"])
    floor = yard["read and BLAKE3, one core"] * 1.3 + COMMAND_SECONDS
    grown, dirty = own["scattered"]["stored"], figures["dirty"]
    rows = [
        ["share of the bare pipeline, both with fsync", f"{yard['pipeline, fsync'] / net:.0%}", "90 %"],
        ["share of the zstd limit", f"{yard['zstd limit'] / net:.0%}", "70 %"],
        *_times(tools, "full", full, {"restic": 3, "borg": 3, "qemu-img": 3}, "full backup"),
        ["unchanged image", f"{own['unchanged']['seconds']:.2f} s", f"≤ {floor:.2f} s"],
        ["scattered writes: stored, of the compressed dirty chunks", f"{grown / dirty[str(CHUNK)]:.2f}", "≤ 1.10"],
        ["scattered writes: stored, of what 4 MiB chunks would", f"{grown / dirty[str(BIG_CHUNK)]:.3f}", "≤ 0.125"],
        *_times(
            tools, "restore raw", own["restore raw"]["seconds"], {"restic": 5, "borg": 4, "qemu-img": 2}, "restore, raw"
        ),
        [
            "restore, raw, of writing the same data from memory, both with fsync",
            f"{yard['write, fsync'] / own['restore raw']['seconds']:.0%}",
            "",
        ],
        *_times(tools, "restore qcow2", own["restore qcow2"]["seconds"], {"qemu-img": 2}, "restore, qcow2"),
        [
            "anonymous memory",
            format_size(max(row["peak_anonymous"] for row in own.values())),
            "≤ 256 MiB",
        ],
    ]
    yield "What was promised. Shares compare the time that the command itself reports, without start and key derivation:"
    yield ""
    yield from _table(["", "measured", "promised"], rows)


def _times(tools: Figures, step: str, own: float, factors: Mapping[str, int], title: str) -> list[list[str]]:
    return [
        [f"{title}, against {name}", f"{tools[name][step]['seconds'] / own:.1f} x", f"{factor} x"]
        for name, factor in factors.items()
        if name in tools and step in tools[name]
    ]


def _chunks(figures: Figures, shape: Shape) -> Iterable[str]:
    per_chunk = figures.get("bytes_per_chunk")
    yield "## Chunk sizes"
    yield ""
    yield f"A full backup, then one after {figures['writes']} writes of 4 KiB, in repositories with different chunk sizes."
    yield ""
    yield from _table(
        [
            "chunk",
            "pipeline, s",
            "full, s",
            "stored",
            "scattered, s",
            "stored by it",
            "dirty chunks",
            "anonymous memory",
            "index of 10 TiB",
        ],
        [
            [
                format_size(row["size"]),
                f"{row['pipeline']:.2f}",
                f"{row['full']:.2f}",
                format_size(row["stored"]),
                f"{row['scattered']:.2f}",
                format_size(row["scattered_stored"]),
                format_size(row["dirty"]),
                format_size(row["peak_anonymous"]),
                format_size(round(10 * TiB / row["size"] * per_chunk)) if per_chunk else "-",
            ]
            for row in figures["rows"]
        ],
    )
    del shape


def _guest(figures: Figures, shape: Shape) -> Iterable[str]:
    tools = figures["tools"]
    names = list(tools)
    yield "## A running guest"
    yield ""
    yield (
        f"The same files in a qcow2 image of a guest that runs ({figures['accelerator']}). virtnbdbackup compresses (LZ4), and neither "
        "encrypts nor deduplicates. Seconds:"
    )
    yield ""
    steps = [step for step in STEPS if step != "restore raw"]
    yield from _steps_table(tools, names, shape, lambda row: f"{row['seconds']:.2f}", steps)
    yield ""
    yield "Bytes stored:"
    yield ""
    yield from _steps_table(tools, names, shape, lambda row: format_size(row["stored"]), steps[:4])
    yield ""
    yield "Bytes read from the guest's disk, as far as the tool tells, and peak anonymous memory:"
    yield ""
    yield from _steps_table(
        tools,
        names,
        shape,
        lambda row: " / ".join(
            format_size(value) for value in (row["bytes_read"], row["peak_anonymous"]) if value is not None
        ),
        steps,
    )


def _thin(figures: Figures, _: Shape) -> Iterable[str]:
    change = figures["change"]
    rows = figures["rows"]
    yield "## Large thin disks"
    yield ""
    yield f"An incremental backup of a running guest after {format_size(change)} of changes. Promised: reads at most 1.2 x what is dirty, and the time of the larger disk is below 1.5 x that of the smaller one."
    yield ""
    yield from _table(
        ["disk", "seconds", "x the small disk", "bytes read", "x the change", "anonymous memory"],
        [
            [
                format_size(row["size"]),
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / rows[0]['seconds']:.2f}",
                format_size(row["bytes_read"]),
                f"{row['bytes_read'] / change:.2f}",
                format_size(row["peak_anonymous"]),
            ]
            for row in rows
        ],
    )


STORAGE_TITLES = {
    "full": "full backup",
    "unchanged": "unchanged",
    "changed": "{change} changed",
    "restore": "restore, raw",
    "verify": "verify all data",
    "replicate": "replicate both backups there",
}


def _storages(figures: Figures, shape: Shape) -> Iterable[str]:
    tools, alone, delay = figures["tools"], figures["alone"], figures["delay"]
    names = list(tools)
    late, relayed = f"s3, +{delay} ms", "s3, +0 ms"
    yield "## Storages"
    yield ""
    yield (
        "The image in repositories on a local disk, on Samba (signed and encrypted), on NFS as far as this kernel allows, and on S3 (SeaweedFS), all "
        f"on this machine, so that server and backup share its processors; and on that S3 server through a relay that adds {delay} ms to each question. Seconds, medians of {figures['runs']} run(s):"
    )
    yield ""
    change = format_size(shape.change)
    yield from _table(
        ["", *names],
        [
            [
                title.format(change=change),
                *(f"{tools[name][step]['seconds']:.2f}" if step in tools[name] else "-" for name in names),
            ]
            for step, title in STORAGE_TITLES.items()
        ],
    )
    yield ""
    stored = format_size(alone["bytes"])
    yield (
        f"The S3 server by itself takes the same objects ({stored}) from eight threads in {alone['upload']:.2f} s and gives them back in "
        f"{alone['download']:.2f} s, which takes no compression and no disk of ours."
    )
    yield ""
    own, restic = tools["s3"], tools["s3, restic"]
    rows = [
        [
            f"{STORAGE_TITLES[step].format(change=change)}, s3, against restic",
            f"{restic[step]['seconds'] / own[step]['seconds']:.1f} x",
            "1 x",
        ]
        for step in ("full", "unchanged", "changed", "restore", "verify")
    ]
    rows += [
        [
            f"{step}, s3, of the speed that the server reaches with {way}s",
            f"{alone[way] / own[step]['seconds']:.0%}",
            "85 %",
        ]
        for step, way in (("replicate", "upload"), ("full", "upload"), ("verify", "download"), ("restore", "download"))
    ]
    rows += [
        [
            f"{step}, s3 with {delay} ms, of the speed without",
            f"{tools[relayed][step]['seconds'] / tools[late][step]['seconds']:.0%}",
            "90 %",
        ]
        for step in ("full", "restore")
    ]
    yield from _table(["", "measured", "promised"], rows)


def _index(figures: Figures, _: Shape) -> Iterable[str]:
    yield f"## An index of {figures['count']:,} chunks"
    yield ""
    yield from _table(
        ["", "measured", "promised"],
        [
            ["size of the local copy", format_size(figures["size"]), ""],
            ["loading all of it anew", f"{figures['load_seconds']:.1f} s", ""],
            ["a lookup, known chunk", f"{figures['known_microseconds']:.1f} µs", "10 µs"],
            ["a lookup, unknown chunk", f"{figures['unknown_microseconds']:.1f} µs", "10 µs"],
            ["a lookup with its own transaction", f"{figures['locate_microseconds']:.1f} µs", "10 µs"],
            ["anonymous memory after loading and lookups", format_size(figures["anonymous_after"]), "256 MiB"],
            ["anonymous memory, peak", format_size(figures["peak_anonymous"]), "256 MiB"],
        ],
    )


def _service(figures: Figures, _: Shape) -> Iterable[str]:
    together, news = figures["all"], figures["news"]
    yield "## The service"
    yield ""
    yield (
        f"Lists of fifty rows out of {figures['backups']:,} backups and {figures['lines']:,} lines of logs, at {figures['rate']} requests a second that do not wait for each other, "
        f"from {figures['apis']} API processes. PostgreSQL, Valkey and the one who asks run on the same machine. Milliseconds from the moment at which a request was to be sent:"
    )
    yield ""
    rows = [
        [name, f"{row['count']:,}", f"{row['p50']:.0f}", f"{row['p99']:.0f}", f"{row['highest']:.0f}"]
        for name, row in [*figures["kinds"].items(), ("**all**", together)]
    ]
    yield from _table(["", "requests", "median", "99 %", "highest"], rows)
    yield ""
    yield (
        f"{news['followers']} WebSockets on one job that moves {news['each_second']} times a second: a message is there after {news['p50']:.0f} ms (median), "
        f"{news['p99']:.0f} ms (99 %), {news['highest']:.0f} ms (highest); none was lost."
    )


def _start(figures: Figures, _: Shape) -> Iterable[str]:
    yield "## Start"
    yield ""
    yield f"`lab-backup --help` takes {figures['seconds']:.2f} s (promised: 0.3 s) and {format_size(figures['peak'])} of memory."


def _steps_table(
    tools: Figures,
    names: Sequence[str],
    shape: Shape,
    cell: Callable[[Figures], str],
    steps: Sequence[str] = STEPS,
) -> Iterable[str]:
    sizes = {"change": format_size(shape.change), "scattered": f"{shape.scattered:,}"}
    yield from _table(
        ["", *names],
        [
            [TITLES[step].format(**sizes), *(cell(tools[name][step]) if step in tools[name] else "-" for name in names)]
            for step in steps
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _numbers(found: dict[str, object]) -> dict[str, float]:
    return {key: value for key, value in found.items() if isinstance(value, int | float)}
