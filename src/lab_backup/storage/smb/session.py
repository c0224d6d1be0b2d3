"""One login to one share: a connection, its session and its tree, and the file operations that a store needs.

A session serves one caller at a time. That keeps smbprotocol's credit window free of races, and several sessions
are faster than one: each has its own thread for decryption.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from uuid import uuid4

from smbprotocol.connection import Dialects, SMB2Echo
from smbprotocol.exceptions import SMBResponseException
from smbprotocol.file_info import (
    FileAttributes,
    FileFsFullSizeInformation,
    FileInformationClass,
    FileRenameInformation,
)
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
    SMB2QueryInfoRequest,
    SMB2QueryInfoResponse,
    SMB2SetInfoRequest,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from lab_backup.blocks import Buffer
from lab_backup.storage.base import StorageAccessError
from lab_backup.storage.smb.errors import FAILURES, NO_MORE_FILES, NO_SUCH_FILE, link_error, status_of
from lab_backup.storage.smb.transport import BoundConnection
from lab_backup.units import KiB, MiB

# It logs lost connections with a traceback, and requests whole; we report each failure ourselves.
logging.getLogger("smbprotocol").setLevel(logging.CRITICAL + 1)

PIECE = 1 * MiB  # per request: larger ones are no faster, and servers allow 1 to 8 MiB
_IN_FLIGHT = 4  # requests of one caller: hides the way to the server and back
_CREDIT = 64 * KiB  # [MS-SMB2] 3.1.5.2
_CREDITS = 256  # asked for at login; one credit pays for 64 KiB
_LISTING = 64 * KiB  # bytes of one answer
_SHARE_ALL = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
_ACCESS = FilePipePrinterAccessMask


class Login(NamedTuple):
    """How to reach a share. `timeout` is in seconds, for connecting and for each answer."""

    host: str
    port: int
    share: str
    user: str | None
    password: str | None
    require_signing: bool
    require_encryption: bool
    source_address: str | None
    timeout: float

    def __repr__(self) -> str:
        return f"Login({self.host}:{self.port}/{self.share})"


class Entry(NamedTuple):
    """What a folder's listing says of a file or folder."""

    name: str
    is_folder: bool
    is_link: bool
    size: int
    modified: Any  # datetime in UTC


class ShareSession:
    """A session on the share of `login`. Its methods raise what smbprotocol and the socket raise (`errors.FAILURES`)."""

    def __init__(self, login: Login) -> None:
        """Connect, log in and open the share."""
        self._connection = BoundConnection(
            login.host,
            login.port,
            client=uuid4(),
            timeout=login.timeout,
            source_address=login.source_address,
            require_signing=login.require_signing,
        )
        try:
            self._log_in(login)
        except BaseException:
            self.drop()
            raise

    def _log_in(self, login: Login) -> None:
        self._connection.connect(timeout=login.timeout)
        encrypts = self._connection.supports_encryption and self._connection.dialect >= Dialects.SMB_3_0_0
        if login.require_encryption and not encrypts:
            raise StorageAccessError(
                f"the server {login.host} does not offer encryption (SMB 3)",
                hint="enable SMB 3 on the server; only on a trusted network, switch encryption off for this storage",
            )
        session = Session(
            self._connection,
            username=login.user,
            password=login.password,
            require_encryption=login.require_encryption,
        )
        session.connect()
        self._tree = TreeConnect(session, rf"\\{login.host}\{login.share}")
        self._tree.connect()
        self._id = session.session_id
        request = self._connection.send(SMB2Echo(), sid=self._id, credit_request=_CREDITS)
        self._connection.receive(request)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as can be told without asking."""
        return self._connection.transport.connected

    def close(self) -> None:
        """Log off and disconnect."""
        with suppress(*FAILURES):
            self._connection.disconnect(close=True)
        self.drop()

    def drop(self) -> None:
        """Disconnect without a word."""
        with suppress(*FAILURES):
            self._connection.disconnect(close=False)

    @contextmanager
    def open(self, path: str, access: int, disposition: int, options: int) -> Iterator[Any]:
        """Open `path` (with `/`, from the share's root) itself, never what a link there points to."""
        handle = Open(self._tree, path.replace("/", "\\"))
        handle.create(
            ImpersonationLevel.Impersonation,
            access,
            FileAttributes.FILE_ATTRIBUTE_NORMAL,
            _SHARE_ALL,
            disposition,
            options | CreateOptions.FILE_OPEN_REPARSE_POINT,
        )
        try:
            is_link = handle.file_attributes & FileAttributes.FILE_ATTRIBUTE_REPARSE_POINT
            if is_link and not options & CreateOptions.FILE_DELETE_ON_CLOSE:
                raise link_error(path)
            yield handle
        except BaseException:
            with suppress(*FAILURES):
                handle.close()
            raise
        handle.close()

    def open_file(self, path: str) -> Any:
        """Open an existing file to read it."""
        access = _ACCESS.FILE_READ_DATA | _ACCESS.FILE_READ_ATTRIBUTES
        return self.open(path, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_NON_DIRECTORY_FILE)

    def open_attributes(self, path: str) -> Any:
        """Open an existing file for what its size and times are."""
        access = _ACCESS.FILE_READ_ATTRIBUTES
        return self.open(path, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_NON_DIRECTORY_FILE)

    def new_file(self, path: str, *, vanishing: bool = False) -> Any:
        """Create a file that must not exist, to write, flush, rename or delete it; `vanishing` when it is closed."""
        access = _ACCESS.FILE_WRITE_DATA | _ACCESS.FILE_READ_ATTRIBUTES | _ACCESS.DELETE
        options = CreateOptions.FILE_NON_DIRECTORY_FILE
        if vanishing:
            options |= CreateOptions.FILE_DELETE_ON_CLOSE
        return self.open(path, access, CreateDisposition.FILE_CREATE, options)

    def remove(self, path: str) -> None:
        """Remove a file, or a link itself."""
        options = CreateOptions.FILE_NON_DIRECTORY_FILE | CreateOptions.FILE_DELETE_ON_CLOSE
        with self.open(path, _ACCESS.DELETE, CreateDisposition.FILE_OPEN, options):
            return

    def folder(self, path: str, *, make: bool = False) -> None:
        """See that `path` is a folder and no link; with `make`, create it where there is nothing."""
        disposition = CreateDisposition.FILE_OPEN_IF if make else CreateDisposition.FILE_OPEN
        access = _ACCESS.FILE_READ_ATTRIBUTES
        with self.open(path, access, disposition, CreateOptions.FILE_DIRECTORY_FILE):
            return

    def flush_folder(self, path: str) -> None:
        """Ask the server to make the entries of a folder durable."""
        access = _ACCESS.FILE_WRITE_DATA | _ACCESS.FILE_APPEND_DATA | _ACCESS.FILE_READ_ATTRIBUTES
        with self.open(path, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_DIRECTORY_FILE) as handle:
            handle.flush()

    def write(self, handle: Any, data: Buffer) -> None:
        """Write `data` from the beginning of the file, with several requests on their way at once."""
        view = memoryview(data).cast("B")
        limit = min(PIECE, self._connection.max_write_size)
        pending: deque[tuple[Any, Any]] = deque()
        at = 0
        while at < len(view) or pending:
            size = min(limit, len(view) - at)
            if size and self._may_send(len(pending), size):
                size = min(size, self._credits() * _CREDIT)
                message, answer = handle.write(bytes(view[at : at + size]), at, send=False)
                pending.append((self._send(message), answer))
                at += size
            else:
                request, answer = pending.popleft()
                answer(request)

    def read(self, handle: Any, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only where the file ends."""
        limit = min(PIECE, self._connection.max_read_size)
        buffer = bytearray(length)
        pending: deque[tuple[Any, Any, int, int]] = deque()
        at = 0
        while at < length or pending:
            size = min(limit, length - at)
            if size and self._may_send(len(pending), size):
                size = min(size, self._credits() * _CREDIT)
                message, answer = handle.read(offset + at, size, send=False)
                pending.append((self._send(message), answer, at, size))
                at += size
            else:
                request, answer, begin, size = pending.popleft()
                data = answer(request)
                buffer[begin : begin + len(data)] = data
                if len(data) < size:
                    for late, answer, _, _ in pending:
                        with suppress(*FAILURES):
                            answer(late)
                    return bytes(buffer[: begin + len(data)])
        return bytes(buffer)

    def rename(self, handle: Any, path: str, *, replace: bool) -> None:
        """Give the open file the name `path`, in one step."""
        information = FileRenameInformation()
        information["replace_if_exists"] = replace
        information["file_name"] = path.replace("/", "\\")
        message = SMB2SetInfoRequest()
        message["info_type"] = information.INFO_TYPE
        message["file_info_class"] = information.INFO_CLASS
        message["file_id"] = handle.file_id
        message["buffer"] = information
        self._connection.receive(self._send(message))

    def entries(self, path: str) -> list[Entry]:
        """Return all entries of a folder but `.` and `..`."""
        access = _ACCESS.FILE_READ_DATA | _ACCESS.FILE_READ_ATTRIBUTES
        found: list[Entry] = []
        with self.open(path, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_DIRECTORY_FILE) as handle:
            while True:
                try:
                    batch = handle.query_directory(
                        "*", FileInformationClass.FILE_DIRECTORY_INFORMATION, max_output=_LISTING
                    )
                except SMBResponseException as error:
                    if status_of(error) not in {NO_MORE_FILES, NO_SUCH_FILE}:
                        raise
                    break
                found += map(_entry, batch)
        return [entry for entry in found if entry.name not in {".", ".."}]

    def space(self, path: str) -> tuple[int, int, int]:
        """Return total, used and free bytes of the file system that holds the folder `path`, as the user sees them."""
        information = FileFsFullSizeInformation()
        access = _ACCESS.FILE_READ_ATTRIBUTES
        with self.open(path, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_DIRECTORY_FILE) as handle:
            message = SMB2QueryInfoRequest()
            message["info_type"] = information.INFO_TYPE
            message["file_info_class"] = information.INFO_CLASS
            message["file_id"] = handle.file_id
            message["output_buffer_length"] = len(information)
            answer: Any = SMB2QueryInfoResponse()
            received: Any = self._connection.receive(self._send(message))
            answer.unpack(received["data"].get_value())
        space = answer.parse_buffer(FileFsFullSizeInformation)
        unit = space["sectors_per_unit"].get_value() * space["bytes_per_sector"].get_value()
        total, actual, free = (
            space[name].get_value() * unit
            for name in ("total_allocation_units", "actual_available_units", "caller_available_units")
        )
        return total, total - actual, min(free, actual)

    def _send(self, message: Any) -> Any:
        return self._connection.send(message, self._id, self._tree.tree_connect_id)

    def _credits(self) -> int:
        window: Any = self._connection.sequence_window
        return int(window["high"]) - int(window["low"])

    def _may_send(self, pending: int, size: int) -> bool:
        """Whether one more request may leave; where none is on its way one credit is enough for a small one."""
        needed = -(-size // _CREDIT) if pending else 1
        return pending < _IN_FLIGHT and self._credits() >= needed


def _entry(found: Any) -> Entry:
    attributes = found["file_attributes"]
    return Entry(
        found["file_name"].get_value().decode("utf-16-le", "surrogatepass"),
        attributes.has_flag(FileAttributes.FILE_ATTRIBUTE_DIRECTORY),
        attributes.has_flag(FileAttributes.FILE_ATTRIBUTE_REPARSE_POINT),
        found["end_of_file"].get_value(),
        found["last_write_time"].get_value(),
    )
