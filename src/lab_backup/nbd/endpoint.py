"""Unix sockets without a place in the file system, so that nothing is left behind and nobody else finds them."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab_backup.errors import LabBackupError
from lab_backup.nbd.address import UnixAddress

MAX_SOCKET_PATH = 107
"""Bytes of a socket's path, unix(7)."""


class Endpoint:
    """A listening socket whose file is gone: a handle on the inode keeps it reachable while this object is open."""

    def __init__(self, path: Path) -> None:
        """Take hold of the socket at `path` and remove the file."""
        self._handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        path.unlink()

    @property
    def address(self) -> UnixAddress:
        """Where this process, and others of the same user, can connect."""
        return UnixAddress(Path(f"/proc/{os.getpid()}/fd/{self._handle}"))

    def close(self) -> None:
        """Let go of the socket. May be called several times."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


@contextmanager
def private_socket_path() -> Iterator[Path]:
    """Yield the path of a socket yet to be made, in a directory that only we can enter and that then disappears."""
    directory = Path(tempfile.mkdtemp(prefix="lab-backup-"))
    try:
        path = directory / "nbd"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise LabBackupError(
                f"the path of the temporary directory {directory.parent} is too long for a socket",
                hint="set TMPDIR to a shorter one, such as /tmp",
            )
        yield path
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def listen(backlog: int) -> tuple[socket.socket, Endpoint]:
    """Return a new listening socket to be handed to a server, and the way to reach it; the caller closes both."""
    with private_socket_path() as path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(backlog)
            return listener, Endpoint(path)
        except BaseException:
            listener.close()
            raise
