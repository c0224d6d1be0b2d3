"""The commands, one module for each subject. What they need is imported inside them: `--help` must not wait for libvirt."""
