"""Objects as files below a folder of an SMB share.

An upload writes a temporary file in `.tmp` below the store's folder, has the server flush it, and renames it: a name
never shows part of an object. `create` is a rename that refuses to replace, which the server does in one step.
"""

import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from smbprotocol.exceptions import SMBException

from lab_backup.blocks import Buffer
from lab_backup.errors import UsageError
from lab_backup.storage.base import (
    InvalidPathError,
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
    Usage,
    check_path,
)
from lab_backup.storage.smb.errors import (
    COLLISION,
    FAILURES,
    IN_USE,
    IS_A_FOLDER,
    MISSING,
    NOT_A_FOLDER,
    link_error,
    status_of,
    translated,
)
from lab_backup.storage.smb.pool import SessionPool
from lab_backup.storage.smb.session import Login, ShareSession

DEFAULT_PORT = 445
TEMPORARY = ".tmp"  # no object's path can begin with a dot
_PATIENCE = 10.0  # seconds that a rename waits for readers of the object that it replaces
_PAUSE = 0.02  # seconds between two tries


class SMBStorage(StorageBackend):
    """The store in the folder `path` (`/`-separated, "" for all of it) of `share` on `host`.

    `user` may be None for the Kerberos ticket of the process, where the system has one. Signing and encryption are
    demanded of the server unless switched off; without encryption, signing still protects from changes on the way.
    `source_address` is the local address to connect from. `timeout` bounds, in seconds, connecting and each answer.
    Nothing but the object itself keeps the password.
    """

    def __init__(
        self,
        host: str,
        share: str,
        path: str = "",
        *,
        port: int = DEFAULT_PORT,
        user: str | None = None,
        password: str | None = None,
        domain: str | None = None,
        require_signing: bool = True,
        require_encryption: bool = True,
        source_address: str | None = None,
        timeout: float = 60.0,
        concurrency: int = 4,
        create: bool = False,
    ) -> None:
        """Connect, and see that the folder is there; with `create`, make it (its parent must exist).

        Raises StorageNotFoundError, StorageAccessError, TransientStorageError; UsageError for names that are none.
        """
        _check_names(host, share, path)
        self._host, self._port, self._share, self._root = host, port, share, path.strip("/")
        self._user = user
        self._concurrency = concurrency
        self._seen: set[str] = set()  # folders that were there, and no links, when last looked at
        self._durable: set[str] = set()  # those whose own entry this object has had flushed
        login = Login(
            host,
            port,
            share,
            rf"{domain}\{user}" if domain and user else user,
            password,
            require_signing,
            require_encryption,
            source_address,
            timeout,
        )
        self._pool = SessionPool(login, concurrency)
        try:
            self._open_root(create=create)
        except BaseException:
            self._pool.close()
            raise

    def __repr__(self) -> str:
        return f"SMBStorage({self.url})"

    @property
    def url(self) -> str:
        """The folder as an `smb:` URL, with the user and without the password."""
        user = f"{quote(self._user, safe='')}@" if self._user else ""
        host = f"[{self._host}]" if ":" in self._host else self._host
        port = "" if self._port == DEFAULT_PORT else f":{self._port}"
        return f"smb://{user}{host}{port}/" + quote(f"{self._share}/{self._root}".rstrip("/"))

    @property
    def concurrency(self) -> int:
        """As many calls as there are connections."""
        return self._concurrency

    def upload(self, path: str, data: Buffer, metadata: Mapping[str, str] | None = None) -> None:
        """Store `data` under `path`. `metadata` is dropped: not every server has a place for it."""
        del metadata
        self._publish(path, data, replace=True)

    def create(self, path: str, data: Buffer) -> None:
        """Store `data` under `path` if there is nothing, in one step of the server."""
        self._publish(path, data, replace=False)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of the object from `offset`; a negative one is a mistake of the caller's."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length must not be negative")
        check_path(path)
        with self._call(path) as session, session.open_file(self._checked(session, path)) as handle:
            rest = max(0, handle.end_of_file - offset)
            return session.read(handle, offset, rest if length is None else min(length, rest))

    def delete(self, path: str) -> None:
        """Remove the object and have the server flush its folder."""
        check_path(path)
        with suppress(ObjectNotFoundError), self._call(path) as session:
            place = self._checked(session, path)
            try:
                session.remove(place)
            except SMBException as error:
                if status_of(error) not in MISSING:
                    raise
            self._flush_folder(session, place.rpartition("/")[0])

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Return the objects below `prefix`, one folder of the share after the other."""
        check_path(prefix, prefix=True)
        pending = deque([prefix])
        while pending:
            folder = pending.pop()
            for info in self._list_folder(folder):
                if isinstance(info, str):
                    pending.append(info)
                else:
                    yield info

    def stat(self, path: str) -> ObjectInfo:
        """Return size and time of the object."""
        check_path(path)
        with self._call(path) as session, session.open_attributes(self._checked(session, path)) as handle:
            return ObjectInfo(path, handle.end_of_file, handle.last_write_time)

    def get_usage(self) -> Usage:
        """Return the space that the server shows the user on the share, quotas included where it does."""
        with self._call("") as session:
            return Usage(*session.space(self._root))

    def clean_temporary(self, older_than_seconds: float) -> int:
        """Remove temporary files last written longer ago than that, by the server's clock."""
        count = 0
        folder = self._place(TEMPORARY)
        with suppress(ObjectNotFoundError), self._call(TEMPORARY) as session:
            session.folder(folder)
            with session.new_file(f"{folder}/{secrets.token_hex(16)}", vanishing=True) as probe:
                now: datetime = probe.last_write_time
            limit = now - timedelta(seconds=older_than_seconds)
            for entry in session.entries(folder):
                if not entry.is_folder and entry.modified < limit:
                    with suppress(SMBException):  # removed meanwhile, or in use
                        session.remove(f"{folder}/{entry.name}")
                        count += 1
        return count

    def close(self) -> None:
        """Log off; every later call fails."""
        self._pool.close()

    def _open_root(self, *, create: bool) -> None:
        try:
            with self._pool.session() as session:
                parent, _, name = self._root.rpartition("/")
                session.folder(parent if create and name else self._root)
                if create and name:
                    session.folder(self._root, make=True)
                    self._flush_folder(session, parent)
        except FAILURES as error:
            found = translated(error, self.url)
            if isinstance(found, ObjectNotFoundError | ObjectExistsError):
                raise StorageNotFoundError(f"{self.url} is not a folder", hint="check the address") from error
            raise found from error

    def _publish(self, path: str, data: Buffer, *, replace: bool) -> None:
        check_path(path)
        with self._call(path) as session:
            place = self._place(path)
            folder = path.rpartition("/")[0]
            self._make_folders(session, folder)
            if not replace and _exists(session, place):
                raise ObjectExistsError(f"{path} exists already in {self.url}")
            try:
                self._put(session, place, data, replace=replace)
            except SMBException as error:
                if status_of(error) in MISSING:
                    self._durable.clear()  # somebody removed one: the repetition makes it anew
                    self._check_root(session)
                    raise TransientStorageError(
                        f"{path} in {self.url}: its folder or temporary file was removed"
                    ) from error
                raise

    def _put(self, session: ShareSession, place: str, data: Buffer, *, replace: bool) -> None:
        """Write a temporary file, flush it, rename it and flush the folder; leave nothing on failure."""
        temporary = self._temporary(session)
        published = False
        try:
            with session.new_file(temporary) as handle:
                session.write(handle, data)
                handle.flush()
                self._rename(session, handle, place, replace=replace)
                published = True
                # On servers that keep a file's name with the file, this makes the new one durable, on others the next does.
                handle.flush()
            self._flush_folder(session, place.rpartition("/")[0])
        except BaseException:
            if not published:
                with suppress(*FAILURES):
                    session.remove(temporary)
            raise

    def _temporary(self, session: ShareSession) -> str:
        if TEMPORARY not in self._durable:
            session.folder(self._place(TEMPORARY), make=True)
            self._durable.add(TEMPORARY)
        return self._place(f"{TEMPORARY}/{secrets.token_hex(16)}")

    def _rename(self, session: ShareSession, handle: Any, place: str, *, replace: bool) -> None:
        """Rename; wait where a reader has the old object open, since servers refuse to replace it meanwhile."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return session.rename(handle, place, replace=replace)
            except SMBException as error:
                status = status_of(error)
                if status not in IN_USE:
                    raise
                _refuse_folder(session, place)
                if time.monotonic() > deadline or not _exists(session, place):
                    raise
            time.sleep(_PAUSE)

    def _flush_folder(self, session: ShareSession, folder: str) -> None:
        """Flush a folder where the server can; others keep their folders in a journal that the file's flush wrote."""
        try:
            session.flush_folder(folder)
        except SMBException as error:
            found = translated(error, folder)
            if isinstance(found, TransientStorageError):
                raise

    def _make_folders(self, session: ShareSession, folder: str) -> None:
        if not folder or folder in self._durable:
            return
        parent = folder.rpartition("/")[0]
        self._make_folders(session, parent)
        try:
            session.folder(self._place(folder), make=True)
        except SMBException as error:
            if status_of(error) in {NOT_A_FOLDER, COLLISION}:
                raise StorageError(f"{folder} in {self.url}: a part of the path is a file") from error
            raise
        # Also where it existed: whoever made it may not have flushed it yet.
        self._flush_folder(session, self._place(parent))
        self._durable.add(folder)

    def _checked(self, session: ShareSession, path: str) -> str:
        """Return the place of `path` on the share, having seen once that no folder on the way to it is a link."""
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            if folder not in self._seen:
                session.folder(self._place(folder))
                self._seen.add(folder)
        return self._place(path)

    def _list_folder(self, folder: str) -> Iterator[ObjectInfo | str]:
        """Yield the objects of a folder, and the paths of the folders in it."""
        try:
            with self._call(folder) as session:
                entries = session.entries(self._place(folder))
        except ObjectNotFoundError:
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                check_path(path)
            except InvalidPathError:
                continue  # foreign to the store
            if entry.is_link:
                # Passing over it could hide a folder of manifests, and collection would delete what they need.
                raise link_error(f"{path} in {self.url}")
            yield path if entry.is_folder else ObjectInfo(path, entry.size, entry.modified)

    def _place(self, path: str) -> str:
        """Return the path from the share's root."""
        return f"{self._root}/{path}".strip("/")

    def _check_root(self, session: ShareSession) -> None:
        """Raise StorageNotFoundError where the store's folder is gone: then nothing can be said about any object."""
        try:
            session.folder(self._root)
        except SMBException as error:
            if status_of(error) in MISSING:
                raise StorageNotFoundError(f"the folder {self.url} was removed", hint="check the share") from error
            raise

    @contextmanager
    def _call(self, path: str) -> Iterator[ShareSession]:
        """Lend a session, and turn what goes wrong with it into an error about `path`."""
        place = f"{path} in {self.url}" if path else self.url
        try:
            with self._pool.session() as session:
                try:
                    yield session
                except SMBException as error:
                    if status_of(error) in MISSING:
                        self._check_root(session)
                    raise
        except FAILURES as error:
            raise translated(error, place) from error


def _exists(session: ShareSession, place: str) -> bool:
    try:
        with session.open_attributes(place):
            return True
    except SMBException as error:
        if status_of(error) == IS_A_FOLDER:
            raise StorageError(f"{place} is a folder") from error
        if status_of(error) in MISSING:
            return False
        raise


def _refuse_folder(session: ShareSession, place: str) -> None:
    """Raise StorageError where `place` is a folder, which a rename reports like a file in use."""
    with suppress(SMBException):
        session.folder(place)
        raise StorageError(f"{place} is a folder")


def _check_names(host: str, share: str, path: str) -> None:
    """Raise UsageError for what is no host, share or folder."""
    if not host or any(character in host for character in "/\\@ \0"):
        raise UsageError("the address names no host", hint="write smb://user@host/share/path")
    if not share or any(character in share for character in '/\\:*?"<>|\0'):
        raise UsageError("the address names no share", hint="write smb://user@host/share/path")
    parts = path.strip("/").split("/") if path.strip("/") else []
    if any(part in {"", ".", ".."} or any(character in part for character in '\\:*?"<>|\0') for part in parts):
        raise UsageError(f"{path!r} is not a folder's path on a share", hint="write smb://user@host/share/path")
