"""Mounts NFS without the kernel's help: `nfs_mount.py -o OPTIONS SERVER:/EXPORT/PATH PLACE`, as mount(8) is called.

For machines whose kernel has no NFS client. A file system in user space passes every call on to a client of NFS 4.0, and waits for a server that restarts as a hard mount
does, though not for ever. It ends when it is unmounted.
"""
# ruff: noqa: ARG002, D102  the methods and their arguments are those of a FUSE file system

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mfusepy
import nfs_rs

PATIENCE = 10.0  # seconds for a server to come back
_LOST = (
    nfs_rs.NfsConnectionError,
    nfs_rs.NfsRetryableError,
    nfs_rs.NfsStateLostError,
    nfs_rs.NfsTimeoutError,
    nfs_rs.NfsClientClosedError,
)


# What cannot be asked a second time, since it may have been done. The caller finds out.
_UNSURE = (nfs_rs.NfsUncertainOutcomeError, nfs_rs.NfsOperationOutcomeError)
_NUMBERS = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (NotADirectoryError, errno.ENOTDIR),
    (IsADirectoryError, errno.EISDIR),
    (PermissionError, errno.EACCES),
)
_WORDS = (
    ("read-only", errno.EROFS),
    ("rofs", errno.EROFS),
    ("no space", errno.ENOSPC),
    ("not empty", errno.ENOTEMPTY),
    ("stale", errno.ESTALE),
)


def _number(error: BaseException) -> int:
    """Return the number of the system's error that the client means."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    for kind, number in _NUMBERS:
        if isinstance(error, kind):
            return number
    said = str(error).lower()
    return next((number for word, number in _WORDS if word in said), errno.EIO)


class Passing(mfusepy.Operations):  # type: ignore[misc]  # it has no types
    """The file system."""

    use_ns = True

    def __init__(self, server: str, port: str, export: str, below: str) -> None:
        """Connect to the export; the root is the folder `below` in it."""
        self._url = f"nfs://{server}/{export}?version=4.0&nfsport={port}"
        self._below = below
        self._lock = threading.Lock()
        self._files: dict[int, tuple[Any, threading.Lock]] = {}
        self._next = 0
        self._client = self._connect()
        self._client.stat(below)

    def _connect(self) -> Any:
        return nfs_rs.Client.connect(self._url, uid=0, gid=0, connect_timeout=3, operation_timeout=2)

    def _path(self, path: str) -> str:
        return f"{self._below}/{path.strip('/')}".strip("/")

    def _call(self, ask: Callable[[Any], Any], *, again: bool = True) -> Any:
        """Ask the server; with `again` until it answers or patience is over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            client = self._client
            try:
                return ask(client)
            except (*_LOST, *_UNSURE) as error:
                with self._lock, suppress(OSError, nfs_rs.NfsError):
                    if self._client is client:
                        self._client = self._connect()
                if not again or isinstance(error, _UNSURE) or time.monotonic() > deadline:
                    raise mfusepy.FuseOSError(errno.EIO) from None
                time.sleep(0.1)
            except (OSError, nfs_rs.NfsError) as error:
                raise mfusepy.FuseOSError(_number(error)) from None

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        info = self._call(lambda client: client.stat(self._path(path)))
        kind = 0o040000 if info.type.name == "DIRECTORY" else 0o120000 if info.type.name == "SYMLINK" else 0o100000
        return {
            "st_mode": kind | (info.mode & 0o7777), "st_size": info.size, "st_uid": info.uid, "st_gid": info.gid,
            "st_nlink": max(1, getattr(info, "nlink", 1)), "st_mtime": info.mtime, "st_ctime": info.ctime, "st_atime": info.atime,
        }  # fmt: skip

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        yield from (".", "..")
        yield from self._call(lambda client: list(client.listdir(self._path(path))))

    def _open(self, path: str, mode: str) -> int:
        file = self._call(lambda client: client.open(self._path(path), mode))
        with self._lock:
            self._next += 1
            self._files[self._next] = file, threading.Lock()
            return self._next

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        number = self._open(path, "w+b")
        self._call(lambda client: client.chmod(self._path(path), mode & 0o7777))
        return number

    def open(self, path: str, flags: int) -> int:
        return self._open(path, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b")

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        file, lock = self._files[fh]
        with lock:
            return bytes(self._call(lambda _: file.read_at(offset, size), again=False))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        file, lock = self._files[fh]
        with lock:
            return int(self._call(lambda _: file.write_at(data, offset), again=False))

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._call(lambda client: client.truncate(self._path(path), length))

    def release(self, path: str, fh: int) -> None:
        file, _ = self._files.pop(fh)
        with suppress(OSError, nfs_rs.NfsError):
            file.close()

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        file, lock = self._files[fh]
        with lock:
            self._call(lambda _: file.flush(), again=False)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._call(lambda client: client.stat(self._path(path)))

    def unlink(self, path: str) -> None:
        self._call(lambda client: client.unlink(self._path(path)))

    def mkdir(self, path: str, mode: int) -> None:
        self._call(lambda client: client.mkdir(self._path(path), mode=mode))

    def rmdir(self, path: str) -> None:
        self._call(lambda client: client.rmdir(self._path(path)))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if flags:
            raise mfusepy.FuseOSError(errno.EINVAL)
        self._call(lambda client: client.rename(self._path(old), self._path(new)))

    def link(self, target: str, source: str) -> None:
        self._call(lambda client: client.link(self._path(source), self._path(target)))

    def chmod(self, path: str, mode: int) -> None:
        self._call(lambda client: client.chmod(self._path(path), mode & 0o7777))

    def statfs(self, path: str) -> dict[str, int]:
        space = self._call(lambda client: client.fs_stat())
        block = 4096
        return {
            "f_bsize": block, "f_frsize": block, "f_blocks": space.total_bytes // block, "f_bfree": space.free_bytes // block,
            "f_bavail": space.available_bytes // block,
        }  # fmt: skip


def main() -> int:
    """Mount in a process of its own, and return when that is done."""
    options = dict(option.partition("=")[::2] for option in sys.argv[2].split(","))
    source, place = sys.argv[3:]
    server, _, path = source.partition(":/")
    export, _, below = path.partition("/")
    try:
        system = Passing(server, options["port"], export, below)
    except (OSError, nfs_rs.NfsError) as error:
        missing = isinstance(error, FileNotFoundError | nfs_rs.NfsNotFoundError)
        reason = "No such file or directory" if missing else str(error)
        sys.stderr.write(f"mount.nfs: mounting {source} failed, reason given by server: {reason}\n")
        return 32
    del system  # its threads do not live on in the other process
    if os.fork() == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        mfusepy.FUSE(
            Passing(server, options["port"], export, below), place, foreground=True, nothreads=False, fsname=source,
            attr_timeout=1, entry_timeout=0, negative_timeout=0, allow_other=True,
        )  # fmt: skip
        os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while f" {place} " not in Path("/proc/self/mountinfo").read_text():
        if time.monotonic() > deadline:
            sys.stderr.write("mount.nfs: it does not appear\n")
            return 32
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main())
