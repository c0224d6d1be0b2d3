"""As whom the servers run that must not be root."""

import os
import pwd
from dataclasses import dataclass

from lab_backup.errors import LabBackupError

CANDIDATES = ("lab-backup", "postgres")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this system, by number and name."""

    uid: int
    gid: int
    name: str

    def command(self, *arguments: str) -> list[str]:
        """Return `arguments` as a command line that runs as this user, and ends (by SIGINT) with the process that started it."""
        change = (
            []
            if os.geteuid() == self.uid
            else [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs"]
        )
        return ["setpriv", "--pdeathsig=INT", *change, "--", *arguments]


def service_account() -> Account:
    """Return whose the servers are: this user, for root an account that may do less. Raises LabBackupError where there is none."""
    if os.geteuid() != 0:
        me = pwd.getpwuid(os.geteuid())
        return Account(me.pw_uid, me.pw_gid, me.pw_name)
    for name in CANDIDATES:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid, name)
    raise LabBackupError(
        "there is no account to run the database as, which must not be root",
        hint="install Debian's postgresql package, or add a system user: adduser --system --group lab-backup",
    )
