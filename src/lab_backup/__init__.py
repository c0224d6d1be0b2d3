"""Lab Backup: incremental, deduplicated, encrypted backups of virtual machines and containers."""

__version__ = "0.1.0"
