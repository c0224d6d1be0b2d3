"""What a repository does when its disk is full. `test_full_disk.py` runs this on a small disk: argv[1] is its mount point, argv[2] a roomy folder."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab_backup.operations.backup import backup_image
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.units import MiB
from support.engine import restored
from support.engine_process import open_local
from support.program import Program


def main(disk: Path, roomy: Path) -> None:
    """Fill the disk by a backup, then to the last byte; delete, collect, and go on."""
    program = Program(roomy)
    root, cache = disk / "repository", roomy / "cache"
    chance = random.Random(20300101)
    images = {}
    for name, size in (("first", 5), ("second", 6), ("large", 30), ("later", 3)):
        images[name] = roomy / name
        images[name].write_bytes(chance.randbytes(size * MiB))
    program.ok("repo", "init", root, "--no-encryption", "--compression", "none", "--chunk-size", "64KiB")
    with open_local(root, cache) as repository:
        first = backup_image(repository, images["first"], name="first", format="raw").backup
        second = backup_image(repository, images["second"], name="second", format="raw").backup

    failed = program("backup", "image", images["large"], "--repo", root, "--format", "raw")
    assert failed.code == 1, failed
    assert "space" in failed.stderr.lower(), failed
    assert "Traceback" not in failed.stderr, failed
    assert not list((root / ".tmp").iterdir()), "a failed upload left its temporary file"
    with open_local(root, cache) as repository:
        assert {backup.id for backup in Backups(repository).all()} == {first, second}
        assert not verify(repository, read_data=True).damage

    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    assert (root / "reserve").exists()
    program.ok("delete", second, "--repo", root)
    collected = program.ok("gc", "--grace", "0", "--exclusive", "--repo", root)
    assert collected["backups_removed"] == [second], collected
    assert (root / "reserve").stat().st_size == 4 * MiB
    left = {path.parent.name for path in root.rglob("*") if path.is_file()}
    assert not left & {"condemned", "removed", "leases", ".tmp"}, left

    later = program.ok("backup", "image", images["later"], "--repo", root, "--format", "raw", "--name", "later")[
        "backup"
    ]
    with open_local(root, cache) as repository:
        assert restored(repository, first, "disk") == images["first"].read_bytes()
        assert restored(repository, later, "disk") == images["later"].read_bytes()
        assert not verify(repository, read_data=True).damage


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
