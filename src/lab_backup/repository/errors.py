"""What can be wrong with a repository, split by what the caller may do next."""

from lab_backup.errors import LabBackupError, NotFoundError, TargetExistsError


class RepositoryError(LabBackupError):
    """The repository cannot do what was asked."""


class NotARepositoryError(RepositoryError, NotFoundError):
    """The storage holds no repository. Check the address, or make one with `repo init`."""


class RepositoryExistsError(RepositoryError, TargetExistsError):
    """There is a repository already; it was left as it is."""


class NewerVersionError(RepositoryError):
    """The repository, or an object in it, was written by a newer version of Lab Backup: update this one."""


class WrongKeyError(RepositoryError):
    """The passphrase or recovery key opens none of the repository's keys."""


class BackupNotFoundError(RepositoryError, NotFoundError):
    """There is no such backup."""


class ProtectedError(RepositoryError):
    """The backup is protected or archived: it may not be deleted until that is taken back."""


class LostRaceError(RepositoryError):
    """What the backup relied on was removed while it ran: it was not published. Running it again is safe."""


class DamagedError(RepositoryError):
    """Stored bytes are missing, changed or lie. Never retry; `verify` finds out how far it goes."""


class ChunkCorruptError(DamagedError):
    """Stored bytes do not match their id. Never retry."""


class ChunkMissingError(DamagedError):
    """A chunk that a backup refers to is nowhere in the repository. Never retry."""


class CacheError(RepositoryError):
    """The local copy of the index cannot be used; the repository is untouched."""
