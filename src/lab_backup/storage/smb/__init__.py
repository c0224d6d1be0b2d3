"""Object stores on SMB shares (Windows, Samba), spoken to directly: no mount and no root rights."""

from lab_backup.storage.smb.storage import SMBStorage

__all__ = ["SMBStorage"]
