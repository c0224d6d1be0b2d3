"""Tables and paragraphs for people. Scripts use `--json`, whose fields are a promise; this layout is none."""

import io
import shutil
import sys
from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from lab_backup.units import format_duration, format_size

if TYPE_CHECKING:
    from lab_backup.operations.catalogue import BackupSummary, Listing
    from lab_backup.operations.checkpoints import Checkpoint
    from lab_backup.operations.collect import CollectResult
    from lab_backup.operations.export import ExportResult
    from lab_backup.operations.files import ListedFile
    from lab_backup.operations.prune import PruneResult
    from lab_backup.operations.replicate import ReplicateResult
    from lab_backup.operations.repositories import KeyInfo, RepositoryInfo
    from lab_backup.operations.restore import RestoreResult
    from lab_backup.operations.restore_container import ContainerResult
    from lab_backup.operations.storage_test import StorageReport
    from lab_backup.operations.verify import VerifyResult
    from lab_backup.sources.libvirt.plan import DiskPlan

SHORT_ID = 12
"""Characters of an id in tables: enough to be unique, few enough to type."""

_UNLIMITED = 4096
"""Columns where stdout is no terminal: lines that a program reads are never broken."""

MAX_DAMAGE = 20
"""Damaged things that are named one by one; `--json` has all."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Return `rows` in columns below `headings`, as wide as the terminal allows; the columns `right` hold numbers."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    numbers = set(right)
    lines = [headings, *rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    if _fits(lines, widths, width):
        return _laid_out(lines, widths, numbers)  # nothing to break: ten thousand rows would take ten seconds otherwise
    for number, heading in enumerate(headings):
        drawn.add_column(Text(heading), justify="right" if number in numbers else "left", overflow="fold")
    for row in lines[1:]:
        drawn.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _fits(lines: Iterable[Sequence[str]], widths: Sequence[int], width: int) -> bool:
    return sum(widths) + 2 * len(widths) <= width and all(cell.isprintable() for line in lines for cell in line)


def _laid_out(lines: Sequence[Sequence[str]], widths: Sequence[int], numbers: Container[int]) -> str:
    from rich.cells import cell_len

    drawn = []
    for line in lines:
        cells = []
        for number, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if number in numbers else cell + space)
        drawn.append("  ".join(cells).rstrip())
    return "\n".join(drawn)


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values in two columns; empty values are left out."""
    present = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in present), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in present)


def local(time: str | datetime) -> str:
    """Return a time (ISO 8601) in the machine's own time zone, to the minute."""
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def repository(info: "RepositoryInfo") -> str:
    """Describe a repository."""
    stored = "" if info.bytes_stored is None else f"{format_size(info.bytes_stored)} in {info.packs} packs"
    return fields(
        [
            ("Repository", info.url),
            ("Id", info.id),
            ("Created", local(info.created)),
            ("Format", f"version {info.version}"),
            ("Encryption", info.encryption),
            ("Compression", info.compression),
            ("Chunk size", format_size(info.chunk_size)),
            ("Grace period", format_duration(info.grace)),
            ("Locked for", format_duration(info.locked_for) if info.locked_for else ""),
            ("Stored", stored),
            ("Chunks", "" if info.chunks is None else str(info.chunks)),
        ]
    )


def keys(found: "Sequence[KeyInfo]") -> str:
    """List the ways to open a repository."""
    return table(
        ["KEY", "KIND", "CREATED", "LABEL"], [(key.id, key.kind, local(key.created), key.label) for key in found]
    )


def backups(listing: "Listing", *, source: str | None = None) -> str:
    """List backups, oldest first; only those of `source` were asked for, if it is given."""
    if not listing.backups:
        return "There are no backups." if source is None else f"There are no backups of {source}."
    rows = [
        (
            item.backup[:SHORT_ID],
            local(item.time),
            f"{item.source_kind}/{item.source}",
            item.kind,
            item.consistency,
            format_size(item.bytes_total),
            format_size(item.bytes_read),
            format_size(item.bytes_stored),
            ", ".join(_state(item)),
        )
        for item in listing.backups
    ]
    headings = ["ID", "TIME", "SOURCE", "KIND", "CONSISTENCY", "SIZE", "READ", "STORED", "STATE"]
    return table(headings, rows, right=(5, 6, 7))


def _state(item: "BackupSummary") -> list[str]:
    words = [word for word, holds in (("protected", item.protected), ("archived", item.archived)) if holds]
    if item.deleted is not None:
        words.append("deleted")
    if item.verified is not None:
        day = local(item.verified.time).split()[0]
        words.append(f"verified {day} ({item.verified.level})" if item.verified.ok else f"DAMAGED {day}")
    return words + [f"#{tag}" for tag in item.tags]


def backup(item: "BackupSummary") -> str:
    """Describe one backup, as it was made and as it is now."""
    verified = ""
    if item.verified is not None:
        found = "nothing damaged" if item.verified.ok else "DAMAGE FOUND"
        verified = f"{local(item.verified.time)}, {item.verified.level}: {found}"
    head = fields(
        [
            ("Backup", item.backup),
            ("Time", local(item.time)),
            ("Source", f"{item.source_kind}/{item.source} ({item.source_id})"),
            ("Host", item.host),
            ("Kind", item.kind),
            ("Consistency", item.consistency),
            ("Size", format_size(item.bytes_total)),
            ("Read", format_size(item.bytes_read)),
            ("Stored", format_size(item.bytes_stored)),
            ("Duration", format_duration(item.duration_seconds)),
            ("Built on", item.parent or ""),
            ("Checksum", item.checksum),
            ("State", ", ".join(_state(item))),
            ("Protected", item.protected_because),
            (
                "Deleted",
                "" if item.deleted is None else f"{local(item.deleted)}, can be undone until its grace period ends",
            ),
            ("Verified", verified),
            ("Files", ", ".join(file.name for file in item.files)),
        ]
    )
    disks = table(
        ["DISK", "FORMAT", "KIND", "SIZE", "READ", "STORED", "WHY READ WHOLE"],
        [
            (
                disk.name, disk.format, disk.kind, format_size(disk.size), format_size(disk.bytes_read),
                format_size(disk.bytes_stored), disk.reason or "",
            )
            for disk in item.disks
        ],
        right=(3, 4, 5),
    )  # fmt: skip
    remarks = [f"warning: {text}" for text in item.warnings] + [f"note: {text}" for text in item.notes]
    return "\n\n".join(part for part in (head, disks, "\n".join(remarks)) if part)


def made(item: "BackupSummary") -> str:
    """Say what a backup has done, in a few lines."""
    head = f"Backup {item.backup[:SHORT_ID]} of {item.source_kind}/{item.source}: {item.kind}, {_consistent(item.consistency)}"
    sizes = (
        f"  {format_size(item.bytes_total)} in {_parts(item)}, {format_size(item.bytes_read)} read, "
        f"{format_size(item.bytes_stored)} stored, in {format_duration(item.duration_seconds)}"
    )
    whole = [f"  {disk.name} was read whole: {disk.reason}" for disk in item.disks if disk.reason]
    return "\n".join([head, sizes, *whole])


def _parts(item: "BackupSummary") -> str:
    """Count what a backup consists of."""
    kinds = ((item.disks, "disk"), (item.trees, "file tree"), (item.streams, "layer"))
    return ", ".join(_count(len(entries), noun) for entries, noun in kinds if entries) or "no disk"


def container(result: "ContainerResult", *, dry_run: bool) -> str:
    """Say what a restore of a container has done, or would do."""
    made = [f"volume {name}" for name in result.volumes] + [f"network {name}" for name in result.networks]
    made += ["its image"] if result.image_loaded else []
    if not result.container:
        return f"{', '.join(made)} of {result.source} is restored."
    with_it = f", with {', '.join(made)}" if made else ""
    if not dry_run:
        state = "and runs" if result.started else "and is not started"
        return f"Container {result.container} is restored{with_it}, {state}."
    lines = [f"Container {result.container} would be restored{with_it}."]
    lines += [f"in the way: {what}" for what in result.conflicts]
    lines += [f"would be replaced: {what}" for what in result.replaces]
    return "\n".join(lines)


def files(listed: "Sequence[ListedFile]") -> str:
    """List files, as `ls -l` does."""
    letters = {
        "directory": "d",
        "symlink": "l",
        "fifo": "p",
        "socket": "s",
        "character": "c",
        "block": "b",
        "hardlink": "h",
    }
    rows = [
        (
            letters.get(file.kind, "-") + file.mode,
            f"{file.uid}:{file.gid}",
            format_size(file.size) if file.kind == "file" else "",
            datetime.fromtimestamp(file.mtime).astimezone().strftime("%Y-%m-%d %H:%M") if file.mtime else "",
            f"{file.path} -> {file.target}" if file.target else file.path,
        )
        for file in listed
    ]
    return table(["MODE", "OWNER", "SIZE", "CHANGED", "NAME"], rows, right=(2,)) if rows else "There is nothing in it."


def _consistent(consistency: str) -> str:
    return "nothing was running" if consistency == "offline" else f"{consistency}-consistent"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan(disks: "Sequence[DiskPlan]") -> str:
    """Say what a backup would read."""
    rows = [
        (
            disk.name,
            disk.kind,
            format_size(disk.size),
            "unknown until then" if disk.bytes_to_read is None else format_size(disk.bytes_to_read),
            disk.reason or ("" if disk.since or disk.keeps_bitmap else "keeps no record of changes"),
        )
        for disk in disks
    ]
    return table(["DISK", "KIND", "SIZE", "TO READ", "WHY"], rows, right=(2, 3))


def verification(result: "VerifyResult") -> str:
    """Say what a verification has found."""
    read = f", {result.read} of them read back ({format_size(result.bytes_read)})" if result.read else ""
    lines = [f"{_count(result.backups, 'backup')} checked: {_count(result.checked, 'part')}{read}"]
    if not result.damage:
        return "\n".join([*lines, "Nothing is missing or damaged."])
    lines.append(f"DAMAGED: {result.corrupt} corrupt, {result.missing} missing")
    for damage in result.damage[:MAX_DAMAGE]:
        lines += [f"  {damage.what}", *(f"    in {touch}" for touch in damage.touches[:3])]
        if len(damage.touches) > 3:
            lines.append(f"    and in {len(damage.touches) - 3} more places")
    if len(result.damage) > MAX_DAMAGE:
        lines.append(f"  and {len(result.damage) - MAX_DAMAGE} more; --json lists all")
    lines.append("The next backup of the same source stores damaged chunks again where the source still has them.")
    return "\n".join(lines)


def collection(result: "CollectResult", *, dry_run: bool) -> str:
    """Say what a garbage collection has done, or would do."""
    would = "would be " if dry_run else ""
    later = "to be removed by a collection after the grace period"
    locked = ""
    if result.locked_until is not None:
        counted = f"{_count(result.objects_locked, 'object')} ({format_size(result.bytes_locked)})"
        locked = f"{counted} not needed any more, but locked until {local(result.locked_until)} at the latest"
    told = [
        (result.backups_removed, f"{_count(len(result.backups_removed), 'backup')} {would}removed for good"),
        (
            result.packs_removed,
            f"{_count(result.packs_removed, 'pack')} {would}removed: {format_size(result.bytes_removed)}",
        ),
        (
            result.packs_condemned,
            f"{_count(result.packs_condemned, 'pack')} {would}condemned: {format_size(result.bytes_condemned)}, {later}",
        ),
        (result.packs_repacked, f"{_count(result.packs_repacked, 'pack')} {would}copied without what nobody needs"),
        (result.packs_spared, f"{_count(result.packs_spared, 'condemned pack')} in use again, so kept"),
        (result.locked_until, locked),
        (result.objects_prolonged, f"{_count(result.objects_prolonged, 'lock')} prolonged"),
        (
            result.missing_chunks,
            f"DAMAGED: {result.missing_chunks} chunks that backups need are missing; see: lab-backup verify",
        ),
    ]
    lines = [line for holds, line in told if holds] or ["There is nothing to remove."]
    return "\n".join([*lines, f"{format_size(result.bytes_live)} in use"])


def pruning(result: "PruneResult") -> str:
    """Say of each backup whether it is kept, and why."""
    if not result.decisions:
        return "There are no backups."
    would = "would be " if result.dry_run else ""
    words = {"keep": "keep", "remove": "remove", "deleted": "(gone)"}
    rows = [
        (
            item.backup[:SHORT_ID],
            local(item.time),
            f"{item.source_kind}/{item.source}",
            words[item.outcome],
            ", ".join(item.reasons),
        )
        for item in result.decisions
    ]
    total = f"{result.kept} kept, {_count(result.removed, 'backup')} {would}removed ({format_size(result.bytes_removed)} stored when made)"
    later = (
        "`lab-backup undelete` takes a removal back until the grace period ends; `lab-backup gc` then frees the space."
    )
    shown = [table(["ID", "TIME", "SOURCE", "DO", "WHY"], rows), total]
    return "\n".join([*shown, later] if result.removed and not result.dry_run else shown)


def storage(report: "StorageReport") -> str:
    """List what a storage was tested for."""
    signs = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}
    return table(["CHECK", "", ""], [(check.name, signs[check.outcome], check.detail) for check in report.checks])


def replication(result: "ReplicateResult") -> str:
    """Say what was copied to another repository."""
    copied = _count(len(result.copied), "backup")
    lines = [f"{copied} copied, {len(result.present)} there already; {format_size(result.bytes_stored)} stored"]
    if result.failed:
        lines.append(f"FAILED: {_count(len(result.failed), 'backup')} could not be copied")
    return "\n".join(lines)


def checkpoints(found: "Sequence[Checkpoint]") -> str:
    """List checkpoints of ours in a VM."""
    if not found:
        return "No backup has left a checkpoint in this VM."
    rows = [(item.name, local(item.created), ", ".join(item.disks)) for item in found]
    return table(["CHECKPOINT", "CREATED", "DISKS"], rows)


def restored(result: "RestoreResult") -> str:
    """Say what a restore has made, and where."""
    what = f"disk of {result.source}" if result.vm is None else f"VM {result.vm} ({result.uuid})"
    head = f"Restored {what} from backup {result.backup[:SHORT_ID]}{', and started it' if result.started else ''}"
    sizes = (
        f"  {format_size(result.bytes_total)}, {format_size(result.bytes_written)} of it data, "
        f"in {format_duration(result.duration_seconds)}"
    )
    return "\n".join([head, sizes, *(f"  {disk.name}: {disk.path} ({disk.format})" for disk in result.disks)])


def exported(result: "ExportResult") -> str:
    """Say what an export has written, and where."""
    sizes = f"{format_size(result.bytes_written)} in {format_duration(result.duration_seconds)}"
    return (
        f"Exported backup {result.backup[:SHORT_ID]} of {result.source} to {result.path}\n"
        f"  {sizes}: {', '.join(result.members)}"
    )
