"""Failures of the NBD client, told apart by what the caller may do next."""

from lab_backup.errors import LabBackupError


class NbdError(LabBackupError):
    """Anything that goes wrong between us and an NBD server."""


class NbdRequestError(NbdError):
    """The server answered one request with an error; the connection goes on working and the request may be repeated."""

    def __init__(self, message: str, errno: int, *, hint: str | None = None) -> None:
        """Keep the server's `errno`, one of the few that the protocol knows (EIO, ENOSPC, EPERM ...)."""
        super().__init__(message, hint=hint)
        self.errno = errno


class NbdConnectionError(NbdError):
    """The connection is lost, or the server broke the protocol; close it, then connect again or give up."""


class NbdNegotiationError(NbdError):
    """Server and client do not come to terms (unknown export, TLS required or refused); trying again will not help."""
