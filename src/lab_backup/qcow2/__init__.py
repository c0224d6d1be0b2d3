"""The qcow2 image format, as far as a backup needs to write it.

Nothing here does I/O: `layout` computes where every byte of a new image lies, and who writes it is the caller's choice: many threads at
once into a file, or one stream front to back.
"""
