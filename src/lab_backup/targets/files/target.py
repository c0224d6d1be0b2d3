"""A tree of files restored into a new or empty folder."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from lab_backup.descent import Descent
from lab_backup.filetree import FileKind, FileRecord
from lab_backup.inode import hold, set_mode
from lab_backup.path_text import NameLists
from lab_backup.targets.errors import TargetError, translated
from lab_backup.targets.files.errors import UnsafeTreeError, naming, reason
from lab_backup.targets.files.file import FileWriter
from lab_backup.targets.files.metadata import apply_metadata
from lab_backup.targets.files.root import RootFolder

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTER = stat.S_IRWXU
_NO_NAMES = {b"", b".", b".."}
_SPECIAL = {
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER: stat.S_IFCHR,
    FileKind.BLOCK: stat.S_IFBLK,
}
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}


class FileTreeTarget:
    """Restores records and contents, in catalogue order, into a folder that only we may enter until `finish`.

    Parents come before what is in them. Nothing is ever made outside of the folder or in place of something else, whatever
    the records say. What cannot be set as it was (owners, attributes, devices) is left out and becomes a warning.
    Not safe for several threads, except for the writes to one file. After an error the caller calls `abort`.
    """

    def __init__(self, directory: Path, *, devices: bool = False) -> None:
        """Begin in `directory`, which is made, or is empty. `devices`: make device nodes too (an overlay's whiteouts always are).

        Raises TargetExistsError, TargetAccessError, TargetError; then nothing was changed.
        """
        self._folder = RootFolder(directory)
        self._devices = devices
        self._unset = NameLists()
        self._root: FileRecord | None = None
        self._open: list[FileRecord] = []  # the directories that lead to where we are, below the root
        self._last: list[bytes] | None = None
        self._closed_to_us: list[FileRecord] = []  # get their mode at the end, so that hard links can be made from them
        self._privileged = os.geteuid() == 0
        self._finished = False
        self._aborted = False
        with translated(directory):
            self._place = Descent(self._folder.number)
            self._sources = Descent(self._folder.number)

    @property
    def warnings(self) -> list[str]:
        """What could not be restored as it was, a sentence for each cause with the first names; complete after `finish`."""
        return self._unset.sentences()

    def add(self, record: FileRecord) -> None:
        """Make what `record` describes, which is no regular file. Raises UnsafeTreeError, TargetFullError and other TargetErrors."""
        if record.kind is FileKind.FILE:
            raise ValueError("a regular file is restored by `file`")
        names = self._advance(record)
        if not names:
            self._root = record
            return
        name = names[-1]
        with naming(self._folder.path, record.path):
            match record.kind:
                case FileKind.DIRECTORY:
                    os.mkdir(name, _ENTER, dir_fd=self._place.here())
                    self._place.enter(name)
                    self._open.append(record)
                case FileKind.SYMLINK:
                    if not record.target or b"\0" in record.target:
                        raise UnsafeTreeError(record.path, "is a symbolic link that no system could make")
                    os.symlink(record.target, name, dir_fd=self._place.here())
                    self._dress(name, record)
                case FileKind.HARDLINK:
                    self._link(name, record)
                case _:
                    self._special(name, record)

    @contextmanager
    def file(self, record: FileRecord) -> Iterator[FileWriter]:
        """Make a regular file, which the caller fills within the context; it is as long as what was written to it.

        Raises as `add` does.
        """
        if record.kind is not FileKind.FILE:
            raise ValueError("only a regular file has content")
        names = self._advance(record)
        if not names:
            raise UnsafeTreeError(record.path, "is a file where the folder itself belongs")
        with naming(self._folder.path, record.path):
            number = os.open(names[-1], _NEW_FILE, 0o600, dir_fd=self._place.here())
        try:
            writer = FileWriter(self._folder.path, record.path, number)
            yield writer
            writer.end()
            apply_metadata(number, record, self._unset)
        finally:
            os.close(number)

    def leave_out(self, record: FileRecord, fate: str) -> None:
        """Note that `record` is not restored, `fate` being why. What is linked to it will be missing as well."""
        self._unset.add(fate, record.path)

    def _advance(self, record: FileRecord) -> list[bytes]:
        """Go to the directory that `record` belongs in, and return the names that lead to it; only forwards, never by a forged path."""
        names = _checked(record.path)
        if self._last is None:
            if names or record.kind is not FileKind.DIRECTORY:
                raise UnsafeTreeError(record.path, "comes before the folder that holds it")
        elif names <= self._last:
            raise UnsafeTreeError(record.path, "is not in its place, or there twice")
        self._last = names
        with naming(self._folder.path, record.path):
            while self._place.depth >= len(names) > 0 or self._place.names != names[: self._place.depth]:
                self._leave()
        if names and self._place.depth != len(names) - 1:
            raise UnsafeTreeError(record.path, "lies in something that is no folder in it")
        return names

    def _leave(self) -> None:
        """Finish the directory that we are in: nothing will be made in it any more."""
        record = self._open.pop()
        hidden = not self._privileged and record.mode & _ENTER != _ENTER
        if hidden:
            self._closed_to_us.append(record)
        apply_metadata(self._place.here(), record, self._unset, keep_mode=_ENTER if hidden else 0)
        self._place.leave()

    def _special(self, name: bytes, record: FileRecord) -> None:
        device = record.kind in {FileKind.CHARACTER, FileKind.BLOCK}
        whiteout = record.kind is FileKind.CHARACTER and record.major == record.minor == 0
        if device and not (self._devices or whiteout):
            self._unset.add("device nodes left out, since they were not asked for", record.path)
            return
        try:
            number = os.makedev(record.major, record.minor) if device else 0
            os.mknod(name, _SPECIAL[record.kind] | 0o600, number, dir_fd=self._place.here())
        except (PermissionError, OverflowError) as error:
            why = reason(error) if isinstance(error, OSError) else "this system has no such value"
            self._unset.add(f"could not be made: {why}", record.path)
            return
        self._dress(name, record)

    def _dress(self, name: bytes, record: FileRecord) -> None:
        number = hold(name, self._place.here())
        try:
            apply_metadata(number, record, self._unset)
        finally:
            os.close(number)

    def _link(self, name: bytes, record: FileRecord) -> None:
        """Make another name of a file that was restored before. Where that was left out, so is this."""
        source = _checked(record.target)
        if not source or source >= _checked(record.path):
            raise UnsafeTreeError(record.path, "is another name of something that does not come before it")
        try:
            directory = self._sources.go_to(source[:-1])
            os.link(source[-1], name, src_dir_fd=directory, dst_dir_fd=self._place.here(), follow_symlinks=False)
        except (NotADirectoryError, FileNotFoundError) as error:
            if isinstance(error, NotADirectoryError):
                raise UnsafeTreeError(record.path, "is another name of something outside of it") from error
            self._unset.add("other names of files that were left out", record.path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._unset.add(f"could not be made as another name of the same file: {reason(error)}", record.path)

    def finish(self) -> None:
        """Give all directories their metadata, and make everything durable. The folder itself comes last."""
        with naming(self._folder.path, b""):
            while self._open:
                self._leave()
            for record in self._closed_to_us:  # what lies deeper comes first
                directory = self._sources.go_to(_checked(record.path))
                set_mode(directory, stat.S_IMODE(record.mode))
            if self._root is not None:
                apply_metadata(self._folder.number, self._root, self._unset)
            else:
                self._folder.restore_mode()
            self._folder.sync()
        self._finished = True

    def abort(self) -> None:
        """Remove everything that is in the folder, and the folder if it was made here. May be called at any time, also twice."""
        if self._aborted:
            return
        self._aborted = True
        self._place.close()
        self._sources.close()
        try:
            self._folder.clear()
        except OSError as error:
            raise TargetError(
                f"what was restored into {self._folder.path} so far could not be removed: {reason(error)}",
                hint="remove it by hand",
            ) from error
        finally:
            self._folder.close()

    def close(self) -> None:
        """Let go of the folder as it is; what was not finished is of no use. May be called several times."""
        self._place.close()
        self._sources.close()
        self._folder.close()
        self._aborted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort, unless it was finished."""
        if not self._finished:
            self.abort()
        self.close()


def _checked(path: bytes) -> list[bytes]:
    """Return the names in the relative `path`, none of which leads anywhere but down. Raises UnsafeTreeError."""
    if not path:
        return []
    names = path.split(b"/")
    if any(name in _NO_NAMES for name in names) or b"\0" in path:
        raise UnsafeTreeError(path, "would lie outside of it")
    return names
