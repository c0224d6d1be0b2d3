"""Trees of files restored into a folder of this host, whole or not at all."""
