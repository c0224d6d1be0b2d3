"""What can be backed up: virtual machines on libvirt, and disk images."""
