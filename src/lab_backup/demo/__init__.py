"""A tiny real virtual machine to try everything on."""
