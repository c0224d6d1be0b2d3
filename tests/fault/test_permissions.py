"""Repositories that may only be read, and permission that is lost midway."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from lab_backup.units import MiB
from support.program import Program


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Take the right to write away from everything below `root`, for a while."""
    modes = {path: path.stat().st_mode for path in (root, *root.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    yield
    for path, mode in modes.items():
        path.chmod(mode)


@pytest.fixture
def program(fast_directory: Path) -> Program:
    """Return the program in an empty folder."""
    return Program(fast_directory)


def test_a_repository_that_may_only_be_read_can_be_restored_from(program: Program) -> None:
    """Listing, verifying every byte, restoring and exporting write nothing into the repository; the rest says why it cannot."""
    image = program.directory / "guest.img"
    image.write_bytes(Random(20300101).randbytes(1 * MiB))
    program.ok("repo", "init", "repo", "--no-encryption")
    backup = program.ok("backup", "image", image, "--repo", "repo", "--name", "guest")["backup"]
    with read_only(program.directory / "repo"):

        def run(*arguments: str, fresh: str, code: int = 0) -> str:
            place = str(program.directory / fresh)
            done = program(*arguments, "--repo", "repo", unprivileged=True, LAB_BACKUP_CACHE=place)
            assert done.code == code, (arguments, done)
            return done.stdout + done.stderr

        run("list", fresh="one")
        verified = run("verify", "--read-data", fresh="one", code=3)
        assert "Nothing is missing or damaged" in verified
        assert "could not be recorded" in verified
        run("restore", "image", backup, "--to", "restored.img", "--format", "raw", fresh="two")
        run("export", backup, "--to", "guest.tar", fresh="two")
        assert (program.directory / "restored.img").read_bytes() == image.read_bytes()
        for command in (["backup", "image", str(image)], ["delete", backup], ["protect", backup], ["gc"]):
            refused = program(*command, "--repo", "repo", unprivileged=True)
            assert refused.code == 1, (command, refused)
            assert "Permission denied" in refused.stderr
            assert "hint:" in refused.stderr
            assert "Traceback" not in refused.stderr
    assert [item["backup"] for item in program.ok("list", "--repo", "repo")["backups"]] == [backup]


def test_permission_that_is_lost_midway_ends_a_backup_and_harms_nothing(fast_directory: Path, program: Program) -> None:
    """Whatever write is refused first: the backup says so and is not there, earlier ones are, and once allowed again the next succeeds."""
    script = Path(__file__).with_name("engine_losing_permission.py")
    done = subprocess.run(
        [*program._without_privileges(unprivileged=True), sys.executable, script, fast_directory],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
