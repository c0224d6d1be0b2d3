"""Emptying a directory, however deep, without leaving it and without following what others put there."""

import errno
import os
import stat
from contextlib import suppress

from lab_backup.descent import Descent
from lab_backup.inode import hold, origin, set_mode

_OWNER = stat.S_IRWXU


def empty(root: int) -> None:
    """Remove all that is in the directory of the open descriptor `root`, except what is mounted in it. Raises OSError."""
    with Descent(root) as descent:
        waiting = [_list(descent.here())]
        while True:
            if waiting[-1]:
                name = waiting[-1].pop()
                if _remove(descent, name):
                    waiting.append(_list(descent.here()))
                continue
            waiting.pop()
            if not waiting:
                return
            name = descent.names[-1]
            descent.leave()
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=descent.here())


def _remove(descent: Descent, name: bytes) -> bool:
    """Remove `name` unless it is a directory; go into that, and say so."""
    try:
        number = hold(name, descent.here())
    except FileNotFoundError:
        return False
    taken = False
    try:
        if not stat.S_ISDIR(os.fstat(number).st_mode):
            os.unlink(name, dir_fd=descent.here())
            return False
        if origin(number).mounted:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        set_mode(number, _OWNER)  # a restored mode may keep us out
        descent.take(name, number)
        taken = True
        return True
    finally:
        if not taken:
            os.close(number)


def _list(directory: int) -> list[bytes]:
    number = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(number) as entries:
            return [os.fsencode(entry.name) for entry in entries]
    finally:
        os.close(number)
