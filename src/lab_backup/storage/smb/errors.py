"""What an SMB server's refusal means for the caller: NTSTATUS codes ([MS-ERREF] 2.3.1) and lost connections, sorted."""

from smbprotocol.exceptions import SMBAuthenticationError, SMBException, SMBResponseException

from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)

FAILURES = (SMBException, OSError, ValueError, EOFError)
"""What smbprotocol raises: its own errors, the socket's, and ValueError or EOFError for answers that it cannot read."""

COLLISION = 0xC0000035
NOT_A_FOLDER = 0xC0000103
IS_A_FOLDER = 0xC00000BA
NAME_NOT_FOUND = 0xC0000034
PATH_NOT_FOUND = 0xC000003A
END_OF_FILE = 0xC0000011
NO_MORE_FILES = 0x80000006
NO_SUCH_FILE = 0xC000000F
DELETE_PENDING = 0xC0000056
ACCESS_DENIED = 0xC0000022
SHARING_VIOLATION = 0xC0000043
_STOPPED_ON_SYMLINK = 0x8000002D
_BAD_NETWORK_NAME = 0xC00000CC

MISSING = {NAME_NOT_FOUND, PATH_NOT_FOUND, NO_SUCH_FILE, 0xC0000225, NOT_A_FOLDER, IS_A_FOLDER, DELETE_PENDING}
IN_USE = {ACCESS_DENIED, SHARING_VIOLATION, DELETE_PENDING, 0xC0000121}
"""What a server says to a rename onto a file that somebody has open at that moment."""

_NO_SPACE = {
    0xC000007F: "the share is full",
    0xC0000044: "the quota is used up",
    0xC0000802: "the quota is used up",
    0xC0000904: "the file is larger than the server's file system allows",
}
_NO_ACCESS = {
    ACCESS_DENIED: "access denied",
    0xC0000061: "a privilege is missing",
    0xC000006A: "wrong password",
    0xC000006D: "user or password is wrong",
    0xC000006E: "the account is restricted",
    0xC000006F: "the account may not log on at this hour",
    0xC0000070: "the account may not log on from this machine",
    0xC0000071: "the password expired",
    0xC0000072: "the account is disabled",
    0xC0000064: "there is no such user",
    0xC00000A2: "the share is write-protected",
    0xC00000CA: "network access denied",
    0xC0000121: "the object cannot be deleted",
    0xC000015B: "the account may not log on over the network",
    0xC0000193: "the account expired",
    0xC0000224: "the password must be changed",
    0xC0000234: "the account is locked",
}
_TRANSIENT = {
    DELETE_PENDING: "the file is being deleted",
    SHARING_VIOLATION: "somebody has the file open",
    0xC0000008: "the server lost the open file",
    0xC0000054: "somebody holds a lock on the file",
    0xC000009A: "the server is short of resources",
    0xC00000B5: "the server's disk did not answer in time",
    0xC00000C4: "the network failed",
    0xC00000C9: "the share was taken away",
    0xC00000CD: "the server has no more room for a request",
    0xC00000D0: "the server takes no more connections",
    0xC0000120: "the server cancelled the request",
    0xC0000128: "the server closed the file",
    0xC000013B: "the connection was closed",
    0xC000013C: "the connection was closed",
    0xC0000185: "the server's disk failed",
    0xC0000203: "the server ended the session",
    0xC0000205: "the server is short of resources",
    0xC000020C: "the connection was closed",
    0xC000020D: "the connection was reset",
    0xC0000241: "the connection was aborted",
    0xC000035C: "the session expired",
    0xC0000466: "the server is not available",
}


def status_of(error: BaseException) -> int | None:
    """Return the NTSTATUS that the server answered with; None where it did not answer."""
    return int(error.status) if isinstance(error, SMBResponseException) else None


def translated(error: Exception, place: str) -> StorageError:  # noqa: PLR0911  a table in the form of a list
    """Return the error that says what the caller may do next; nothing of the library's text is in it."""
    status = status_of(error)
    if status is None:
        return _without_answer(error, place)
    if status in _NO_SPACE:
        return NoSpaceError(
            f"{place}: {_NO_SPACE[status]}",
            hint="free space on the share or raise its quota; deleting backups works on a full share",
        )
    if status == COLLISION:
        return ObjectExistsError(f"{place} exists already")
    if status in _TRANSIENT:
        return TransientStorageError(f"{place}: {_TRANSIENT[status]}", hint="check the file server, then try again")
    if status in _NO_ACCESS:
        return StorageAccessError(
            f"{place}: {_NO_ACCESS[status]}",
            hint="check user, password and domain, and that the user may read, write and delete in the share's folder",
        )
    if status in MISSING:
        return ObjectNotFoundError(f"there is no {place}")
    if status == _STOPPED_ON_SYMLINK:
        return link_error(place)
    if status == _BAD_NETWORK_NAME:
        return StorageNotFoundError(f"{place}: the server has no such share", hint="check the share's name")
    return StorageError(f"{place}: the server answered with status 0x{status:08X}")


def link_error(place: str) -> StorageError:
    """Return the error for a link (reparse point) where an object or folder should be."""
    return StorageError(
        f"{place} is a link (reparse point), and a storage follows none", hint="move what it points to into its place"
    )


def _without_answer(error: Exception, place: str) -> StorageError:
    if isinstance(error, SMBAuthenticationError):
        return StorageAccessError(f"{place}: the login failed", hint="check user, password and domain")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the connection was lost"
    return TransientStorageError(f"{place}: {reason}", hint="check the network and the file server, then try again")
