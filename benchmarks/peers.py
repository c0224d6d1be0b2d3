"""The tools that are compared, each behind the same few verbs and each in the way its own manual recommends for disk images."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from measure import CommandFailedError, Cost, run, stored_bytes

Format = Literal["raw", "qcow2"]

LAB_BACKUP = Path(sys.executable).with_name("lab-backup")
PREPARE_SECONDS = 120


class Tool(ABC):
    """A backup tool with a repository of its own below `folder`. Nothing of it lies elsewhere on the machine."""

    name: str
    incremental = True
    """Whether a second backup into the same repository means anything."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which must not exist, and prepare the repository; that is not measured."""
        folder.mkdir()
        self.folder = folder
        self.repository = folder / "repository"
        self.secret = secrets.token_hex(16)
        self.prepare()

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the tool's commands find in their environment."""

    @abstractmethod
    def prepare(self) -> None:
        """Make an empty repository."""

    @abstractmethod
    def backup(self, image: Path) -> Cost:
        """Back up the file `image`, reading it whole: its time stamps may not be trusted, as with a running guest's."""

    @abstractmethod
    def restore(self, target: Path, kind: Format) -> Cost | None:
        """Restore the newest backup to the file `target`; None where the tool cannot make that format."""

    @abstractmethod
    def verify(self) -> Cost | None:
        """Read and check everything that is stored; None where the tool cannot."""

    def stored(self) -> int:
        """Return the bytes of the repository on disk."""
        return stored_bytes(self.repository)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder)

    def run(self, *command: str | Path, folder: Path | None = None) -> Cost:
        """Run and measure one command."""
        return run(command, environment=self.environment, folder=folder)

    def run_unmeasured(self, command: Sequence[str | Path]) -> None:
        """Run a command that prepares something."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**os.environ, **self.environment},
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PREPARE_SECONDS,
        )
        if done.returncode != 0:
            raise CommandFailedError(f"{command[0]} {command[1]} ended with {done.returncode}:\n{done.stderr}")


class LabBackup(Tool):
    """This project, through its command line."""

    name = "lab-backup"
    init_options: Sequence[str] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Passphrase, repository, and a cache of its own."""
        return {
            "LAB_BACKUP_PASSPHRASE": self.secret,
            "LAB_BACKUP_REPO": str(self.repository),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def prepare(self) -> None:
        """Make an encrypted repository, with 128 KiB chunks and zstd-3 unless `init_options` say otherwise."""
        self.run_unmeasured([LAB_BACKUP, "repo", "init", self.repository, *self.init_options])

    def backup(self, image: Path) -> Cost:
        """Back up the image; `--json` so that the figures can be taken from the answer."""
        return self.run(LAB_BACKUP, "backup", "image", image, "--name", "disk", "--json")

    def restore(self, target: Path, kind: Format) -> Cost:
        """Restore, which checks each chunk and syncs the file."""
        return self.run(LAB_BACKUP, "restore", "image", "latest:image/disk", "--to", target, "--format", kind, "--json")

    def verify(self) -> Cost:
        """Decrypt, decompress and hash every chunk."""
        return self.run(LAB_BACKUP, "verify", "--read-data", "--json")


def answer(cost: Cost) -> dict[str, object]:
    """Return what one of our commands printed with `--json`."""
    found: dict[str, object] = json.loads(cost.output)
    return found


class Restic(Tool):
    """restic with compression, which needs repository version 2."""

    name = "restic"

    @property
    def environment(self) -> dict[str, str]:
        """Password, repository, and a cache of its own."""
        return {
            "RESTIC_PASSWORD": self.secret,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.folder / "cache"),
        }

    def prepare(self) -> None:
        """Make the repository."""
        self.run_unmeasured(["restic", "init", "--repository-version", "2"])

    def backup(self, image: Path) -> Cost:
        """Back up; `--force` re-reads the file."""
        return self.run("restic", "backup", "--force", "--compression", "auto", image.name, folder=image.parent)

    def restore(self, target: Path, kind: Format) -> Cost | None:
        """Restore, and move the file out of the folders that restic puts it into."""
        if kind != "raw":
            return None
        folder = self.folder / "restored"
        cost = self.run("restic", "restore", "latest", "--target", folder)
        next(path for path in folder.rglob("*") if path.is_file()).rename(target)
        shutil.rmtree(folder)
        return cost

    def verify(self) -> Cost:
        """Read all packs."""
        return self.run("restic", "check", "--read-data")


class Borg(Tool):
    """Borg with fixed-size chunks of 1 MiB, as its manual recommends for disk images, and zstd-3."""

    name = "borg"

    def __init__(self, folder: Path) -> None:
        """Count the archives, since each needs a name."""
        self._count = 0
        super().__init__(folder)

    @property
    def environment(self) -> dict[str, str]:
        """Passphrase, and all of Borg's own folders below one."""
        return {"BORG_PASSPHRASE": self.secret, "BORG_BASE_DIR": str(self.folder / "base")}

    def prepare(self) -> None:
        """Make the repository, encrypted and authenticated with BLAKE2b."""
        self.run_unmeasured(["borg", "init", "--encryption", "repokey-blake2", self.repository])

    def backup(self, image: Path) -> Cost:
        """Back up, skipping holes; without the files cache, so that the file is re-read."""
        self._count += 1
        chunks = ["--compression", "zstd,3", "--chunker-params", "fixed,1048576", "--sparse"]
        archive = f"{self.repository}::{self._count}"
        return self.run(
            "borg", "create", "--files-cache", "disabled", *chunks, archive, image.name, folder=image.parent
        )

    def restore(self, target: Path, kind: Format) -> Cost | None:
        """Extract with holes."""
        if kind != "raw":
            return None
        folder = self.folder / "restored"
        folder.mkdir()
        cost = self.run("borg", "extract", "--sparse", f"{self.repository}::{self._count}", folder=folder)
        next(folder.iterdir()).rename(target)
        folder.rmdir()
        return cost

    def verify(self) -> Cost:
        """Decrypt and check all data."""
        return self.run("borg", "check", "--verify-data", self.repository)


class QemuImg(Tool):
    """A compressed qcow2 file: no encryption, no increments, no checksums. It does not wait for the disk."""

    name = "qemu-img"
    incremental = False

    @property
    def environment(self) -> dict[str, str]:
        """Nothing special."""
        return {}

    def prepare(self) -> None:
        """Make the folder for the file."""
        self.repository.mkdir()

    def backup(self, image: Path) -> Cost:
        """Convert to a compressed qcow2."""
        options = ["-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        return self.run("qemu-img", "convert", *options, image, self.repository / "disk.qcow2")

    def restore(self, target: Path, kind: Format) -> Cost:
        """Convert back."""
        return self.run("qemu-img", "convert", "-f", "qcow2", "-O", kind, self.repository / "disk.qcow2", target)

    def verify(self) -> None:
        """There is nothing to check the data against."""
        return


TOOLS: tuple[type[Tool], ...] = (LabBackup, Restic, Borg, QemuImg)
