"""Putting new files in the place of old ones, all of them or none."""

import os
import secrets
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from lab_backup.errors import LabBackupError


class SwapError(LabBackupError):
    """A file could not be moved; all that had been moved was moved back."""


class Replacement(NamedTuple):
    """The file `written` takes the name `path`; `old`, if there is one, makes way. `old` may have another name than `path`."""

    written: Path
    path: Path
    old: Path | None


class Swap:
    """Moves files, or whole folders, within their folders. What it did is undone by `undo`, or completed by `commit`.

    Until the commit the old files lie beside their former names, `NAME.before-restore-XXXXXX`, so that nothing is lost
    even where the process is killed between two steps.
    """

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._aside: list[Path] = []
        self._token = secrets.token_hex(3)

    def replace(self, item: Replacement) -> None:
        """Move the old file aside and the new one to its name. Raises SwapError; the caller then calls `undo`."""
        try:
            if item.old is not None:
                aside = item.old.with_name(f"{item.old.name}.before-restore-{self._token}")
                self._move(item.old, aside)
                self._aside.append(aside)
            if item.written != item.path:
                self._move(item.written, item.path)
        except OSError as error:
            raise SwapError(
                f"cannot put {item.written.name} in the place of {item.path}: {os.strerror(error.errno or 0)}",
                hint="the VM is as it was before",
            ) from error

    def _move(self, source: Path, target: Path) -> None:
        _rename(source, target)
        self._undo.callback(_move_back, target, source)

    def undo(self) -> None:
        """Move everything back."""
        self._aside.clear()
        self._undo.close()

    def commit(self) -> list[Path]:
        """Remove the old files; return those that could not be removed."""
        self._undo.pop_all()
        left = []
        for path in self._aside:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError:
                left.append(path)
        return left


def _move_back(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        _rename(source, target)


def _rename(source: Path, target: Path) -> None:
    """Rename durably, never over another file."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a folder, or a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(17, "File exists", str(target)) from None
        source.rename(target)
    else:
        source.unlink()
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
