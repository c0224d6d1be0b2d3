"""What can go wrong with an image that is there and may be read."""

from lab_backup.errors import BusyError, LabBackupError


class ImageChangedError(BusyError):
    """Somebody wrote to the image while it was read, so what was read is no point in time."""


class ImageReadError(LabBackupError):
    """The storage below the image fails."""


class UnsafeImageError(LabBackupError):
    """Reading the image as it describes itself could read what does not belong to it, or cannot be done at all."""
