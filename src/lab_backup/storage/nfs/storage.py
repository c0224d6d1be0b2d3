"""A local folder that is sure to lie on the NFS server that it was opened on."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from lab_backup.storage.base import StorageError, StorageNotFoundError, TransientStorageError
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.nfs.address import Address
from lab_backup.storage.nfs.mounter import Mounted, Mounter
from lab_backup.storage.nfs.mounts import covering, mounts

_PASSING = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EPIPE,
    errno.ESHUTDOWN,
}
"""Says that the server or the way to it is in trouble, whatever was asked; nothing about objects."""

LOST = {errno.ESTALE, errno.ENOTCONN}
"""Says that the handle of the folder is worth nothing any more; a new one may be."""


class NFSStorage(LocalStorage):
    """The folder of `address`, mounted by this host already or by us. All file operations are LocalStorage's.

    The folder is held open on the mounted file system itself, so nothing can end up on the disk below its mount point, whenever that is lost; and it
    is opened anew, after a look whether it still is that mount, when the server has forgotten it.
    """

    def __init__(self, address: Address, *, create: bool = False, mounter: Mounter | None = None) -> None:
        """Open the folder; with `create` its last part is made. Raises StorageNotFoundError, StorageAccessError, TransientStorageError, UsageError."""
        self._address = address
        self._mounter = mounter or Mounter()
        self._mounted: Mounted | None = None
        self._below = ""
        try:
            super().__init__(self._place(create=create))
            self._check_mount(self._root)
        except BaseException:
            self.close()
            raise

    def _place(self, *, create: bool) -> Path:
        """Return where the folder is on this host; mount it where it is nowhere."""
        there = self._mounter.existing(self._address)
        if there is None:
            try:
                self._mounted = self._mounter.mount(self._address)
            except StorageNotFoundError:
                if not create or self._address.path == "/":
                    raise
                self._mounted = self._mounter.mount(self._address.parent)
                self._below = self._address.name
            there = self._mounted.path / self._below
        if create and not there.is_dir():
            self._on_mount(there.parent)
            LocalStorage.create_root(there).close()
        return there

    def _on_mount(self, folder: Path) -> None:
        """Raise StorageNotFoundError unless the folder lies on such a mount: nothing is made anywhere else."""
        try:
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error(error, "") from error
        try:
            self._check_mount(number)
        finally:
            os.close(number)

    def _check_mount(self, number: int) -> None:
        device = os.fstat(number).st_dev
        wanted = os.major(device), os.minor(device)
        here = (mount for mount in mounts() if mount.device == wanted)
        # Also another server's mount at that place is the wrong one.
        if covering(here, self._address.source, port=self._address.port, kinds=self._mounter.kinds) is None:
            raise StorageNotFoundError(
                f"{self._address.url} is not mounted any more: its folder on this host lies on another file system",
                hint="mount it again; nothing was written",
            )

    @property
    def url(self) -> str:
        """The address."""
        return self._address.url

    @property
    def concurrency(self) -> int:
        """Enough to keep a line with some latency busy."""
        return 8

    def _error(self, error: OSError, path: str) -> StorageError:
        where = f"{path} on {self.url}" if path else self.url
        if error.errno in LOST:
            self._reopen()
        if error.errno in _PASSING or error.errno == errno.ESTALE:
            return TransientStorageError(
                f"{where}: {os.strerror(error.errno or 0)}",
                hint="check the file server and the network, then try again",
            )
        return super()._error(error, path)

    def _reopen(self) -> None:
        """Get hold of the folder again, if it is there and is on the mount; else everything goes on failing."""
        with suppress(OSError, StorageError):
            number = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._check_mount(number)
                os.dup2(
                    number, self._root, inheritable=False
                )  # whoever is using the old one meanwhile fails, and tries again
            finally:
                os.close(number)

    def close(self) -> None:
        """Let go of the folder, and of the mount where it was ours."""
        if hasattr(self, "_root"):
            super().close()
        if self._mounted is not None:
            self._mounted.leave()
