"""The qcow2 format, as far as writing a new image needs it."""
