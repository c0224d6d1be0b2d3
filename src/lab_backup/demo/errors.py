"""What can go wrong with the machines of the demo and the tests."""

from lab_backup.errors import LabBackupError


class DemoError(LabBackupError):
    """A tool, file or machine that the demo needs is missing or failed. What was started is ended all the same."""


class GuestError(DemoError):
    """A guest did not do what it was asked to, or not in time."""
