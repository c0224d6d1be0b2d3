"""A qemu-nbd process that serves one image to this process and nobody else."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, NotFoundError
from lab_backup.nbd.address import UnixAddress
from lab_backup.nbd.child import Child
from lab_backup.nbd.client import NbdClient
from lab_backup.nbd.endpoint import listen
from lab_backup.nbd.errors import NbdError
from lab_backup.nbd.stream import Stream

MAX_CONNECTIONS = 16
"""Clients that may be connected at once."""

LAST_WORDS = 5.0
"""Seconds that a server which hung up may take to end."""


class QemuNbdError(NbdError):
    """qemu-nbd cannot serve the image: damaged, of another format, without the bitmap."""


class QemuNbd:
    """A context manager: inside, the image at `path` is served at `address`, under the empty export name.

    qemu-nbd locks the image like a running VM would. It gets its socket from us, so there is no moment at which
    connecting could fail although all is well, and it ends with this process even if that is killed.
    """

    def __init__(
        self,
        path: Path,
        image_format: str,
        *,
        read_only: bool = True,
        bitmap: str | None = None,
        cache: Literal["none", "writeback", "unsafe"] = "writeback",
        discard: Literal["ignore", "unmap"] = "unmap",
        timeout: float = 60.0,
    ) -> None:
        """Prepare to serve `path` as `image_format`; qemu-nbd is never left to guess the format.

        `bitmap` is a persistent dirty bitmap to be shown as context `qemu:dirty-bitmap:NAME`. `cache` and `discard`
        are qemu-nbd's and matter for writing; `unsafe` ignores flushes. `timeout` (seconds) bounds opening the image.
        """
        self._path = path.absolute()  # so that QEMU takes no part of it for a protocol or an option
        self._read_only = read_only
        self._timeout = timeout
        self._command = ["qemu-nbd", f"--format={image_format}", f"--shared={MAX_CONNECTIONS}", f"--cache={cache}"]
        self._command += ["--read-only"] if read_only else [f"--discard={discard}"]
        self._command += [] if bitmap is None else [f"--bitmap={bitmap}"]
        self._command += ["--", str(self._path)]
        self._stack = ExitStack()
        self._child: Child | None = None
        self._address: UnixAddress | None = None

    @property
    def address(self) -> UnixAddress:
        """Where to connect; valid while the context is open, in this process and in others of the same user."""
        if self._address is None:
            raise RuntimeError("qemu-nbd was not started")
        return self._address

    @property
    def pid(self) -> int:
        """The process id of qemu-nbd."""
        if self._child is None:
            raise RuntimeError("qemu-nbd was not started")
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether qemu-nbd still runs."""
        return self._child is not None and self._child.alive

    def connect(self, contexts: Sequence[str] = ()) -> NbdClient:
        """Return a new client of the image."""
        return NbdClient.connect(self.address, "", contexts=contexts, timeout=self._timeout)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            listener, endpoint = listen(MAX_CONNECTIONS)
            stack.callback(endpoint.close)
            self._address = endpoint.address
            with listener:
                # This connection waits in the queue until the image is open, so it tells when that is. Held open, it
                # keeps qemu-nbd from ending with its last client.
                held = Stream.connect(self._address, self._timeout)
                stack.callback(held.close)
                self._child = Child(self._command, package="qemu-utils", listener=listener)
                stack.callback(self._child.stop)
            self._await(held, self._child)
            self._stack = stack.pop_all()
        return self

    def _await(self, held: Stream, child: Child) -> None:
        try:
            NbdClient.over(held, "", timeout=self._timeout)
        except NbdError as error:
            if child.wait(LAST_WORDS):
                raise explain(self._path, child.said) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


_CAUSES: list[tuple[str, type[LabBackupError], str, str | None]] = [
    ("Failed to get .*lock", BusyError, "is in use by another process", "shut the VM down, or back it up as a VM"),
    (
        "backing file.*No such file",
        NotFoundError,
        "needs a backing file that is not there",
        "put it back, or correct its path by qemu-img rebase -u",
    ),
    ("No such file or directory", NotFoundError, "does not exist", None),
    ("Permission denied|Operation not permitted", AccessDeniedError, "may not be opened by this user", "run as root"),
    ("Image is not in .* format", QemuNbdError, "has another format than was said", "name the right format"),
    ("Unknown driver", QemuNbdError, "has a format that qemu-nbd does not know", "name a format such as raw or qcow2"),
    ("Bitmap .* is not found", NotFoundError, "does not have the dirty bitmap", None),
    ("Bitmap .* is inconsistent", QemuNbdError, "has a dirty bitmap that was not closed cleanly", None),
]


def explain(path: Path, said: str) -> LabBackupError:
    """Return the error that tells what qemu-nbd's last words `said` about the image at `path`."""
    words = " ".join(re.sub(r"(?m)^qemu-nbd: ", "", said).split()) or "it ended without a word"
    for pattern, kind, text, hint in _CAUSES:
        if re.search(pattern, said):
            return kind(f"image {path} {text} (qemu-nbd: {words})", hint=hint)
    return QemuNbdError(f"qemu-nbd cannot serve image {path}: {words}", hint="check the image with qemu-img check")
