"""Directories held open from a root downwards: paths of any length are followed one name at a time, never through a symbolic link.

What other processes rename or replace meanwhile cannot lead elsewhere, since every step starts from an open directory.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_MOST_OPEN = 64  # descriptors; far below the usual limit of 1024, deeper than trees usually are
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    name: bytes
    inode: int
    number: int | None = None


class Descent:
    """Where one is below a root; a context manager. Only the deepest directories are kept open; others are found again by name.

    Stays on the file system of the root: what lies on another raises OSError (EXDEV).
    """

    def __init__(self, root: int) -> None:
        """Start in the directory of the open descriptor `root`, which stays its owner's. Raises OSError."""
        self._root = os.open(".", _DIRECTORY, dir_fd=root)
        self._device = os.fstat(self._root).st_dev
        self._levels: list[_Level] = []
        self._first_open = 0  # levels from here on are open; all, unless the tree is deep

    @property
    def depth(self) -> int:
        """How many steps below the root it is."""
        return len(self._levels)

    @property
    def names(self) -> list[bytes]:
        """The names that lead here from the root."""
        return [level.name for level in self._levels]

    def here(self) -> int:
        """Return an O_PATH descriptor of the directory, valid until the next step. Raises OSError if it was moved away."""
        if not self._levels:
            return self._root
        if self._levels[-1].number is None:
            self._find_again()
        number = self._levels[-1].number
        if number is None:
            raise RuntimeError("the directory was opened, and is not open")
        return number

    def enter(self, name: bytes) -> int:
        """Go into the directory `name`, and return its descriptor. Raises OSError, and stays, if it is none."""
        number = os.open(name, _DIRECTORY, dir_fd=self.here())
        try:
            self.take(name, number)
        except BaseException:
            os.close(number)
            raise
        return number

    def take(self, name: bytes, number: int) -> None:
        """Go into the directory `name`, whose O_PATH descriptor is `number`, and own that. Raises OSError, and stays, where it cannot."""
        status = os.fstat(number)
        if status.st_dev != self._device:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        self._levels.append(_Level(name, status.st_ino, number))
        self._close_shallow()

    def leave(self) -> None:
        """Go up one step."""
        level = self._levels.pop()
        self._first_open = min(self._first_open, len(self._levels))
        if level.number is not None:
            os.close(level.number)

    def go_to(self, names: Sequence[bytes]) -> int:
        """Go to the directory that `names` lead to from the root, and return its descriptor. Raises OSError."""
        common = 0
        for level, name in zip(self._levels, names, strict=False):
            if level.name != name:
                break
            common += 1
        while self.depth > common:
            self.leave()
        for name in names[common:]:
            self.enter(name)
        return self.here()

    def _close_shallow(self) -> None:
        while self.depth - self._first_open > _MOST_OPEN:
            level = self._levels[self._first_open]
            if level.number is not None:
                os.close(level.number)
                level.number = None
            self._first_open += 1

    def _find_again(self) -> None:
        """Open the deepest levels again, from the root; each must be the directory that it was."""
        above, keep = os.dup(self._root), max(0, self.depth - _MOST_OPEN)
        try:
            for index, level in enumerate(self._levels):
                number = os.open(level.name, _DIRECTORY, dir_fd=above)
                if index > keep:
                    level_above = self._levels[index - 1]
                    level_above.number = above
                else:
                    os.close(above)
                above = number
                status = os.fstat(number)
                if (status.st_dev, status.st_ino) != (self._device, level.inode):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except BaseException:
            os.close(above)
            self._close_levels()
            raise
        self._levels[-1].number = above
        self._first_open = keep

    def _close_levels(self) -> None:
        for level in self._levels:
            if level.number is not None:
                os.close(level.number)
                level.number = None
        self._first_open = self.depth

    def close(self) -> None:
        """Let go of all directories. May be called several times."""
        self._close_levels()
        self._levels = []
        if self._root >= 0:
            with suppress(OSError):
                os.close(self._root)
            self._root = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
