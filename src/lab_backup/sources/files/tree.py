"""A folder of this host as a tree of files, read while others may change it."""

import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from lab_backup.descent import Descent
from lab_backup.filetree import FileContent, FileKind, FileRecord
from lab_backup.inode import hold, link_to, origin
from lab_backup.path_text import NameLists
from lab_backup.sources.files.content import LocalFileContent
from lab_backup.sources.files.errors import EXHAUSTED, GONE, exhausted, reason, root_error
from lab_backup.sources.files.record import read_record

_READ = os.O_RDONLY | os.O_CLOEXEC


class LocalFileTree:
    """All that is below a folder, on its own file system. Implements FileTree; a context manager.

    Every name is opened from the open directory that holds it, so nothing outside of the folder is ever read, whatever
    is swapped meanwhile. What is mounted below is left out: of a directory the empty one remains. Directories and
    files keep their times of access where the system allows it (to their owner and root); symbolic links cannot.
    Memory grows with the names of one directory and those above it, and with the files of several names whose other
    names were not met yet.
    """

    def __init__(self, root: Path) -> None:
        """Open `root`, following symbolic links. Raises NotFoundError, UsageError, AccessDeniedError, TreeReadError."""
        self._path = root
        self._found = NameLists()
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise root_error(root, error) from error

    @property
    def warnings(self) -> list[str]:
        """What could not be read or changed meanwhile, a sentence for each cause with the first names."""
        return self._found.sentences()

    def records(self) -> Iterator[FileRecord]:
        """Return all names in catalogue order, the root first. What vanishes meanwhile is left out."""
        with Descent(self._root) as descent:
            yield read_record(b"", self._root, os.fstat(self._root), partial(self._attributes_unread, b""))
            links: dict[tuple[int, int, int], tuple[bytes, int]] = {}
            waiting = [self._list(descent.here(), b"")]
            while waiting:
                if not waiting[-1]:
                    waiting.pop()
                    if descent.depth:
                        descent.leave()
                    continue
                name = waiting[-1].pop()
                above = b"/".join(descent.names)
                path = above + b"/" + name if above else name
                try:
                    directory = descent.here()
                except OSError:
                    self._found.add("read only in part, since they were moved meanwhile", above)
                    waiting[-1].clear()
                    continue
                record, number = self._look(directory, name, path, links)
                if record is None:
                    continue
                yield record
                if number is not None:
                    descent.take(name, number)
                    waiting.append(self._list(number, path))

    def _list(self, directory: int, path: bytes) -> list[bytes]:
        """Return the names in `directory`, the first one last."""
        try:
            number = _open_quietly(".", os.O_DIRECTORY, directory)
        except OSError as error:
            self._unreadable("the content of these folders could not be read", path, error)
            return []
        try:
            with os.scandir(number) as entries:
                names = [os.fsencode(entry.name) for entry in entries]
        except OSError as error:
            self._unreadable("the content of these folders could not be read", path, error)
            return []
        finally:
            os.close(number)
        names.sort(reverse=True)
        return names

    def _look(
        self, directory: int, name: bytes, path: bytes, links: dict[tuple[int, int, int], tuple[bytes, int]]
    ) -> tuple[FileRecord | None, int | None]:
        """Return the record of `name`, and its descriptor where it is a directory to go into, which the caller owns."""
        number: int | None = None
        try:
            number = hold(name, directory)
            status = os.fstat(number)
            source = origin(number)
            is_directory = stat.S_ISDIR(status.st_mode)
            if source.mounted or (is_directory and status.st_dev != os.fstat(self._root).st_dev):
                self._found.add("left out, since something else is mounted there", path)
                return (self._record(path, number, status) if is_directory else None), None
            if not is_directory and status.st_nlink > 1:
                inode = (status.st_dev, status.st_ino, source.born_ns)
                first = _first_name(links, inode, path, status.st_nlink)
                if first is not None:
                    return FileRecord(path=path, kind=FileKind.HARDLINK, target=first), None
            record = self._record(path, number, status)
            if is_directory:
                kept, number = number, None
                return record, kept
        except OSError as error:
            self._unreadable("could not be read", path, error)
            return None, None
        else:
            return record, None
        finally:
            if number is not None:
                os.close(number)

    def _record(self, path: bytes, number: int, status: os.stat_result) -> FileRecord:
        return read_record(path, number, status, partial(self._attributes_unread, path))

    def contents(self, records: Iterable[FileRecord]) -> Iterator[FileContent]:
        """Return the contents of the regular files of `records`, in their order. Those that are files no more are left out.

        A file that is written to, cut or made longer while it is read becomes a warning.
        """
        with Descent(self._root) as descent:
            for wanted in records:
                number = self._open(descent, wanted)
                if number is None:
                    continue
                try:
                    before = os.fstat(number)
                    failed = partial(self._unreadable, "read only in part", wanted.path)
                    yield LocalFileContent(self._record(wanted.path, number, before), number, failed)
                    if _moment(os.fstat(number)) != _moment(before):
                        self._found.add("changed while they were read", wanted.path)
                finally:
                    os.close(number)

    def _open(self, descent: Descent, wanted: FileRecord) -> int | None:
        """Open a file for reading, once it is sure that it is one: opening a device may do something to it."""
        if wanted.kind is not FileKind.FILE:
            return None
        *above, name = wanted.path.split(b"/")
        try:
            held = hold(name, descent.go_to(above))
            try:
                if not stat.S_ISREG(os.fstat(held).st_mode) or origin(held).mounted:
                    return None
                return _open_quietly(link_to(held), 0, None)
            finally:
                os.close(held)
        except OSError as error:
            self._unreadable("could not be read", wanted.path, error)
            return None

    def _unreadable(self, fate: str, path: bytes, error: OSError) -> None:
        if error.errno in EXHAUSTED:
            raise exhausted(self._path, error) from error
        if error.errno not in GONE:
            self._found.add(f"{fate}: {reason(error)}", path)

    def _attributes_unread(self, path: bytes, error: OSError) -> None:
        self._unreadable("saved without some of their extended attributes", path, error)

    def close(self) -> None:
        """Let go of the folder. May be called several times."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_name(
    links: dict[tuple[int, int, int], tuple[bytes, int]], inode: tuple[int, int, int], path: bytes, names: int
) -> bytes | None:
    """Return the name under which `inode` was met before; None the first time. One whose names were all met is forgotten."""
    first, left = links.get(inode, (None, names))
    if left > 1:
        links[inode] = (path if first is None else first, left - 1)
    else:
        links.pop(inode, None)
    return first


def _open_quietly(path: str, flags: int, directory: int | None) -> int:
    """Open for reading without a trace in the time of access, which only owners and root may (open(2))."""
    try:
        return os.open(path, _READ | os.O_NOATIME | flags, dir_fd=directory)
    except PermissionError:
        return os.open(path, _READ | flags, dir_fd=directory)


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
