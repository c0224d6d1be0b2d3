"""A backup of a VM in a process of its own, made to be killed: `URI VM REPOSITORY BACKUP open|frozen|snapshot`.

It prints `reached` when the source is open, with `snapshot` by that method, or when the guest is frozen and the job not
yet begun, and waits there.
"""

import sys
import time
from unittest import mock

from lab_backup.sources.libvirt.pull import PullBackup
from lab_backup.sources.libvirt.request import Method
from lab_backup.sources.libvirt.source import open_vm


def wait_here(*_arguments: object) -> None:
    """Tell the test that the place is reached, and wait to be killed."""
    print("reached", flush=True)  # noqa: T201  the test reads it
    time.sleep(600)


def main() -> None:
    """Back up until the wanted place."""
    uri, name, repository, backup, place = sys.argv[1:]
    method = Method.SNAPSHOT if place == "snapshot" else Method.AUTO
    source = open_vm(name, connect=uri, repository_id=repository, backup_id=backup, method=method)
    if place == "frozen":
        with mock.patch.object(PullBackup, "_begin_job", wait_here), source:
            return
    with source:
        wait_here()


main()
