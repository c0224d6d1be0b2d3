"""Many processes on one repository, at an hour a second, killed with -9 at random: whatever is committed verifies and restores.

By default a few seconds for each storage. LAB_BACKUP_TEST_LIFE=600 lets each go on for ten minutes, which is thousands of operations; LAB_BACKUP_TEST_SEED repeats the choices of a run.
"""

import os
import random
import secrets
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab_backup.operations.collect import collect
from lab_backup.operations.verify import verify
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.s3.storage import S3Storage
from support import hurried
from support.engine import restored
from support.engine_process import Child
from support.hurried import BLOCK, GRACE, Place, content_of, open_hurried

SECONDS = float(os.environ.get("LAB_BACKUP_TEST_LIFE", "12"))
SEED = int(os.environ.get("LAB_BACKUP_TEST_SEED", "0")) or secrets.randbits(32)
WORKERS = 3


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, fast_directory: Path) -> Place:
    """Return a new repository in a folder, or in a bucket of a real server."""
    if request.param == "local":
        folder = fast_directory / "repository"
        create_repository(
            LocalStorage.create_root(folder), passphrase=None, chunk_size=BLOCK, compression="none", grace=GRACE
        )
        return folder
    server = request.getfixturevalue("seaweed")
    bucket, prefix = server.place()
    with ExitStack() as stack:
        storage = S3Storage(bucket, prefix, connection=server.connection())
        stack.callback(storage.close)
        create_repository(storage, passphrase=None, chunk_size=BLOCK, compression="none", grace=GRACE)
    return bucket, prefix, server.connection()


@pytest.mark.timeout(max(300, 3 * SECONDS))
def test_what_is_committed_survives(place: Place, fast_directory: Path) -> None:
    """Backups, deletions and collections of processes that are killed all the time: at the end all that is there is whole, and only garbage is gone."""
    folder = fast_directory / "life"
    folder.mkdir()
    began = time.time()
    chooser = random.Random(SEED)
    end = began + SECONDS
    workers: list[Child] = []
    kills = 0
    with ExitStack() as stack:
        while time.time() < end:
            while len(workers) < WORKERS:
                seed = chooser.randrange(10**9)
                workers.append(stack.enter_context(Child(hurried.live, place, folder, began, end, seed)))
            victim = chooser.choice(workers)
            kills += victim.kill_after(chooser.uniform(0.05, 1.5))
            workers = [worker for worker in workers if worker.process.is_alive()]
        for worker in workers:
            worker.wait()
    surprises = folder / "surprises"
    assert not surprises.exists(), f"seed {SEED}: {surprises.read_text()}"
    done = Counter((folder / "log").read_text().splitlines())
    with open_hurried(place, folder / "last", began) as repository:
        collect(repository)
        report = verify(repository, read_data=True)
        assert report.damage == (), f"seed {SEED}: {report.damage[:3]}"
        backups = Backups(repository).all()
        for backup in backups:
            assert restored(repository, backup.id, "disk") == content_of(backup.manifest.source.name), f"seed {SEED}"
    print(f"seed {SEED}: {sum(done.values())} operations, {kills} kills, {len(backups)} backups left; {dict(done)}")  # noqa: T201  what a long run is for
    assert kills > 3
    assert done["backup: done"] > 3
    assert done["collect: done"] > 1
