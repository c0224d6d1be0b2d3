"""Disk images: raw and qcow2 files, and block devices."""
