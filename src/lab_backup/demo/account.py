"""The account that a private hypervisor runs as: never root."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from lab_backup.demo.tool import SEARCH_PATH

_NOBODY = 65534
_KVM = Path("/dev/kvm")


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers of a user and its groups. `groups` is None where processes keep those of the caller."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None = None

    @classmethod
    def for_hypervisor(cls, *, kvm: bool) -> Self:
        """Return the caller's own account, or for root that of nobody; with `kvm` in the group of `/dev/kvm`."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        return cls(_NOBODY, _NOBODY, (_KVM.stat().st_gid,) if kvm and _KVM.exists() else ())

    def own(self, path: Path) -> None:
        """Give `path` to this account, where it is not the caller's own."""
        if self.groups is not None:
            os.chown(path, self.uid, self.gid)

    def start(
        self, arguments: Sequence[str], *, output: IO[bytes], environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program as this account in `/`, in a session of its own, so that a Ctrl-C does not reach it.

        The environment is `environment` and a PATH, nothing else; both outputs go to `output`. Raises FileNotFoundError.
        """
        program = shutil.which(arguments[0], path=SEARCH_PATH)
        if program is None:
            raise FileNotFoundError(arguments[0])
        return subprocess.Popen(
            [program, *arguments[1:]],
            cwd="/",
            env={"PATH": SEARCH_PATH, "LANG": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=self.uid if self.groups is not None else None,
            group=self.gid if self.groups is not None else None,
            extra_groups=self.groups,
        )
