"""`python -m lab_backup` is the same as `lab-backup`."""

from lab_backup.program import run

run()
