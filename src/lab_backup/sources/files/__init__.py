"""Trees of files on a file system of this host."""
