"""Giving a restored file its owner, extended attributes, mode and times, as far as the system lets us."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab_backup.filetree import FileKind, FileRecord
from lab_backup.inode import link_to, set_mode
from lab_backup.path_text import NameLists, shown
from lab_backup.targets.files.errors import reason

_NO_ID = 2**32 - 1  # chown(2) takes it as "leave it as it is"
_SET_IDS = stat.S_ISUID | stat.S_ISGID


def apply_metadata(number: int, record: FileRecord, unset: NameLists, *, keep_mode: int = 0) -> None:
    """Make the file that `number` holds open (also by O_PATH) what `record` says; what could not be set goes to `unset`.

    The order matters: a change of owner takes away set-user-id and capabilities, attributes include the ACL, which the
    mode must agree with, and times change with all of them. The bits of `keep_mode` stay set besides.
    """
    path = link_to(number)
    owned = False
    with _noting(unset, "the owner could not be set", record.path):
        if not (0 <= record.uid < _NO_ID and 0 <= record.gid < _NO_ID):
            raise OverflowError
        os.chown(path, record.uid, record.gid)
        owned = True
    for name, value in record.xattrs.items():
        with _noting(unset, f"the extended attribute {shown(name)} could not be set", record.path):
            os.setxattr(path, name, value)
    if record.kind is not FileKind.SYMLINK:
        mode = stat.S_IMODE(record.mode)
        if not owned and record.kind is not FileKind.DIRECTORY and mode & _SET_IDS:
            mode &= ~_SET_IDS  # or whoever restores would lend out their own rights
            unset.add("set-user-id and set-group-id left out, since the owner could not be set", record.path)
        with _noting(unset, "the mode could not be set", record.path):
            set_mode(number, mode | keep_mode)
    with _noting(unset, "the time of modification could not be set", record.path):
        os.utime(path, ns=(time.time_ns(), record.mtime_ns))


@contextmanager
def _noting(unset: NameLists, fate: str, path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        unset.add(f"{fate}: {reason(error)}", path)
    except (OverflowError, ValueError):
        unset.add(f"{fate}: this system has no such value", path)
