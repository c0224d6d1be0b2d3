"""Where a restore puts disks: new files and devices, each whole or not at all."""
