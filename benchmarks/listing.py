"""Listing many backups in a bucket: with a warm local copy, and without; and how many requests that takes.

python listing.py [COUNT]     makes COUNT backups (10,000) in a bucket of a SeaweedFS of its own, lists them by the command line, prints figures as JSON,
and ends with status 1 where a warm list takes two seconds or asks for single backups
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lab_backup.repository import manifest as manifests
from lab_backup.repository.backups import Backups
from lab_backup.repository.create import create_repository
from lab_backup.repository.envelope import Kind
from lab_backup.repository.repository import open_repository
from lab_backup.repository.session import new_backup_id
from lab_backup.storage.s3.storage import S3Storage
from support.engine import back_up
from support.seaweed import ADMIN, Seaweed

MOST_SECONDS = 2.0
PASSPHRASE = "only for this measurement"  # noqa: S105  of nothing that stays
_REQUESTS = re.compile(r'^lab_backup_storage_requests_total\{[^}]*operation="(\w+)"[^}]*\} (\d+)', re.MULTILINE)


def fill(storage: S3Storage, count: int, folder: Path) -> None:
    """Publish `count` manifests, all alike but for their ids and times."""
    create_repository(storage, passphrase=PASSPHRASE)
    with open_repository(storage, passphrase=PASSPHRASE, cache_directory=folder / "maker") as repository:
        model = Backups(repository).find(back_up(repository, os.urandom(1 << 20)).backup).manifest

        def publish(number: int) -> None:
            backup = new_backup_id()
            when = f"2026-{number // 840 % 12 + 1:02}-{number // 30 % 28 + 1:02}T{number % 24:02}:{number % 60:02}:00Z"
            made = msgspec.structs.replace(model, backup=backup, time=when, parent=None)
            repository.put_object(Kind.MANIFEST, manifests.path(backup), manifests.encode(made))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(publish, range(count - 1)))


def listed(url: str, folder: Path, count: int) -> tuple[float, dict[str, int]]:
    """Return the seconds of `lab-backup list`, and how often it asked the storage for what."""
    figures = folder / "metrics"
    environment = {
        **os.environ,
        "LAB_BACKUP_REPO": url,
        "LAB_BACKUP_PASSPHRASE": PASSPHRASE,
        "LAB_BACKUP_CACHE": str(folder / "cache"),
        "LAB_BACKUP_METRICS": str(figures),
        "AWS_ACCESS_KEY_ID": ADMIN.access_key,
        "AWS_SECRET_ACCESS_KEY": ADMIN.secret_key,
    }
    program = str(Path(sys.executable).with_name("lab-backup"))
    began = time.perf_counter()
    done = subprocess.run([program, "list", "--json"], env=environment, capture_output=True, check=True)
    seconds = time.perf_counter() - began
    if len(json.loads(done.stdout)["backups"]) != count:
        raise SystemExit("not all backups were listed")
    return seconds, {name: int(number) for name, number in _REQUESTS.findall(figures.read_text())}


def main(count: int) -> int:
    """Measure, print, and say whether what is promised is kept."""
    with tempfile.TemporaryDirectory() as name, Seaweed(Path(name) / "weed") as server:
        folder = Path(name)
        bucket, prefix = server.place()
        storage = S3Storage(bucket, prefix, connection=server.connection(), concurrency=16)
        fill(storage, count, folder)
        storage.close()
        url = f"s3://{bucket}/{prefix}?endpoint={server.endpoint}"
        cold = listed(url, folder, count)
        warm = sorted((listed(url, folder, count) for _ in range(3)), key=lambda run: run[0])[1]
    print(
        json.dumps(
            {
                "backups": count,
                "seconds_cold": round(cold[0], 2),
                "requests_cold": cold[1],
                "seconds_warm": round(warm[0], 2),
                "requests_warm": warm[1],
            }
        )
    )
    return int(warm[0] >= MOST_SECONDS or sum(warm[1].values()) > count / 100)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
