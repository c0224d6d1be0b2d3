"""A whole tree of files into a target, be it from a repository or from another folder."""

from collections import deque
from collections.abc import Iterator

from lab_backup.filetree import FileContent, FileKind, FileRecord, FileTree
from lab_backup.targets.files.file import FileWriter
from lab_backup.targets.files.target import FileTreeTarget
from lab_backup.units import MiB

_PIECE = 1 * MiB  # of a file in memory at once
_NO_CONTENT = "left out, since their content is not there"


def restore_tree(tree: FileTree, target: FileTreeTarget) -> None:
    """Restore all of `tree` into `target`, which the caller finishes. Raises what they raise.

    A file without content is left out, with a warning of the target. The tree may ask for records ahead of the contents that it returns.
    """
    waiting: deque[FileRecord] = deque()

    def files() -> Iterator[FileRecord]:
        for record in tree.records():
            waiting.append(record)
            if record.kind is FileKind.FILE:
                yield record

    for content in tree.contents(files()):
        _others(waiting, target, until=content.record.path)
        with target.file(content.record) as writer:
            _fill(writer, content)
    _others(waiting, target)


def _others(waiting: deque[FileRecord], target: FileTreeTarget, *, until: bytes | None = None) -> None:
    """Make everything that comes before the file `until`."""
    while waiting:
        record = waiting.popleft()
        if record.kind is not FileKind.FILE:
            target.add(record)
        elif record.path == until:
            return
        else:
            target.leave_out(record, _NO_CONTENT)


def _fill(writer: FileWriter, content: FileContent) -> None:
    buffer = bytearray(_PIECE)
    with memoryview(buffer) as view:
        for extent in content.extents():
            if extent.zero:
                writer.write_zeroes(extent.offset, extent.length)
                continue
            for offset in range(extent.offset, extent.end, _PIECE):
                with view[: min(_PIECE, extent.end - offset)] as piece:
                    count = content.read_into(offset, piece)
                    writer.write(offset, piece[:count])
                    if count < len(piece):
                        return
