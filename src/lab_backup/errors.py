"""The root of every error that Lab Backup raises on purpose.

An error says what happened, to which object, and what to do next. Each layer derives its own; the edges (command line,
API) translate classes into exit codes and HTTP statuses, so no layer below knows of either.
"""


class LabBackupError(Exception):
    """An expected failure whose text is written for the person who reads it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep `message` (what happened, to what) and `hint` (what to do next), neither holding a secret."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(LabBackupError):
    """What was asked for makes no sense; nothing was changed."""


class NotFoundError(LabBackupError):
    """The named object does not exist; nothing was changed."""


class AmbiguousError(UsageError):
    """A name fits several objects; the message lists them."""


class BusyError(LabBackupError):
    """The object is in use by somebody else; try again later."""


class TargetExistsError(LabBackupError):
    """What should be created is already there, and overwriting was not asked for."""


class AccessDeniedError(LabBackupError):
    """The operating system, hypervisor or server refuses access to the object."""


class CancelledError(LabBackupError):
    """The caller asked to stop; what had been begun was cleaned up."""
