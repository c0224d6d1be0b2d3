"""Two APIs, three workers, one database: workers are killed with -9 all the time, and yet every job ends, none runs twice at once, and nothing is left over."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from lab_backup.catalog.work import BackupRow, Job, JobLog
from lab_backup.demo.podman_service import PodmanService
from lab_backup.operations.catalogue import list_backups
from lab_backup.operations.repositories import open_repository
from lab_backup.operations.verify import verify
from lab_backup.sources.podman.connection import Podman
from support.cluster import Cluster
from support.podman_box import Box, container
from support.service import ENDED

JOBS = int(os.environ.get("LAB_BACKUP_TEST_JOBS", "18"))
SOURCES = 9
SEED = int(os.environ.get("LAB_BACKUP_TEST_SEED", "1"))
BETWEEN_KILLS = 4.0  # seconds, give or take two
SECONDS = 120 + 4 * JOBS  # until all have ended, also on a busy machine

# What every change of a job was, written down by the database itself: who held which job, from when to when.
WATCH = """
create table seen (job uuid, lock_key text, status text, epoch int, owner text, at timestamptz default clock_timestamp());
create function see() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status or new.lease_epoch is distinct from old.lease_epoch then
        insert into seen values (new.id, new.lock_key, new.status, new.lease_epoch, new.lease_owner);
    end if;
    return new;
end $$;
create trigger see after update on jobs for each row execute function see();
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run two APIs, two beats and three workers."""
    with Cluster() as made:
        for kind in ("api", "api", "beat", "beat"):
            made.start(kind)
        for _ in range(3):
            made.start("worker", "--concurrency", "1")
        made.wait_for_apis()
        yield made


@pytest.mark.timeout(SECONDS + 240)
def test_workers_that_are_killed_all_the_time_lose_no_job_and_run_none_twice(
    cluster: Cluster, podman_service: PodmanService, tmp_path: Path
) -> None:
    """Every job ends; of one source one runs at a time, by the database's notes and by the jobs' own lines; containers run on, the repository is sound and holds what the jobs say."""
    with ExitStack() as stack:
        boxes = [stack.enter_context(container(podman_service)) for _ in range(SOURCES)]
        for box in boxes:
            box.sh("head -c 3000000 /dev/urandom > /data/x")
        before = _things(podman_service)
        token = cluster.sign_in()
        folder = tmp_path / "repository"
        storage = cluster.ask("POST", "storage", {"name": "disk", "url": str(folder), "passphrase": None}, token=token)
        sources = _sources(cluster, token, podman_service, boxes)
        with cluster.sessions() as session:
            session.execute(text(WATCH))
            session.commit()
        for number in range(JOBS):
            body = {"source_type": "container", "source_id": sources[number % SOURCES], "storage_backend_id": storage["id"]}  # fmt: skip
            cluster.ask("POST", "backups", body, token=token, api=number)
        kills = _kill_until_all_ended(cluster)
        jobs, lines, seen = _told(cluster)
        _check_jobs(jobs, kills)
        _check_that_none_ran_twice(jobs, lines, seen)
        with Podman(podman_service.uri) as podman:
            assert {box.state(podman) for box in boxes} == {"running"}
        assert _things(podman_service) == before
        cluster.job(cluster.ask("POST", f"storage/{storage['id']}/rebuild-catalog", token=token)["id"], token)
        cluster.stop()
        _check_repository(cluster, folder, jobs)
        assert not _processes_of(cluster.folder) - {os.getpid()}, "the servers alone are left"


def _things(service: PodmanService) -> dict[str, list[bytes]]:
    """Return what there is in Podman, for a comparison."""
    kinds = {"containers": ("ps", "-aq"), "images": ("images", "-aq"), "volumes": ("volume", "ls", "-q")}
    return {name: sorted(service.run(*words).stdout.split()) for name, words in kinds.items()}


def _sources(cluster: Cluster, token: str, service: PodmanService, boxes: list[Box]) -> list[str]:
    host = cluster.ask("POST", "podman/hosts", {"name": "box", "uri": service.uri}, token=token)
    end = time.monotonic() + 60
    while True:
        rows = cluster.ask("GET", f"podman/hosts/{host['id']}/containers?limit=500", token=token)["items"]
        found = {row["name"]: row["id"] for row in rows}
        if all(box.name in found for box in boxes):
            return [found[box.name] for box in boxes]
        assert time.monotonic() < end, "the containers were not found"
        time.sleep(0.2)


def _kill_until_all_ended(cluster: Cluster) -> Counter[str]:
    """Kill a worker every few seconds, with or without its children, for as long as there are jobs that were not tried; return how often, when all have ended."""
    choose = random.Random(SEED)
    workers = [part for part in cluster.parts if part.arguments[0] == "worker"]
    kills: Counter[str] = Counter()
    end, next_kill = time.monotonic() + SECONDS, time.monotonic() + 2
    while True:
        with cluster.sessions() as session:
            living = select(func.count()).select_from(Job).where(Job.type == "backup", Job.status.not_in(ENDED))
            left, untried = session.scalar(living), session.scalar(living.where(Job.attempt == 1))
        if not left:
            return kills
        assert time.monotonic() < end, f"{left} jobs have not ended"
        if untried and time.monotonic() > next_kill:
            part, whole = choose.choice(workers), choose.random() < 0.75
            part.kill(whole=whole)
            cluster.again(part)
            kills["whole" if whole else "without its children"] += 1
            next_kill = time.monotonic() + BETWEEN_KILLS + choose.uniform(-2, 2)
        time.sleep(0.1)


def _told(cluster: Cluster) -> tuple[list[Job], list[JobLog], list[Any]]:
    with cluster.sessions() as session:
        jobs = list(session.scalars(select(Job).where(Job.type == "backup").order_by(Job.created_at)))
        lines = list(session.scalars(select(JobLog).order_by(JobLog.timestamp)))
        return jobs, lines, list(session.execute(text("select * from seen order by at")))


def _check_jobs(jobs: list[Job], kills: Counter[str]) -> None:
    ends = Counter((job.status, job.attempt) for job in jobs)
    assert sum(kills.values()) >= 3, kills
    assert {status for status, _ in ends} <= {"succeeded", "succeeded with warnings", "interrupted"}, (
        ends,
        [job.error for job in jobs if job.status == "failed"],
    )
    assert sum(job.attempt == 1 for job in jobs) == JOBS
    assert ends["interrupted", 1] >= 1, "no kill hit a job"
    again = Counter(job.retry_of for job in jobs if job.retry_of is not None)
    assert again == Counter(job.id for job in jobs if job.status == "interrupted" and job.attempt == 1)
    succeeded = sum(job.status.startswith("succeeded") for job in jobs)
    assert succeeded >= JOBS * 0.6, ends


def _check_that_none_ran_twice(jobs: list[Job], lines: list[JobLog], seen: list[Any]) -> None:
    running: dict[str, tuple[object, datetime]] = {}
    for row in seen:  # by what the database saw
        if row.lock_key is None:
            continue
        if row.status == "running":
            assert row.lock_key not in running, f"{row.job} began while {running[row.lock_key]} ran"
            assert row.epoch == 1, "a job that was lost is done by a new one, not taken twice"
            running[row.lock_key] = (row.job, row.at)
        elif row.status in ENDED and row.lock_key in running:
            assert running.pop(row.lock_key)[0] == row.job
    assert not running
    spoken: dict[object, tuple[datetime, datetime]] = {}
    for line in lines:  # by what the workers said while they worked
        first = spoken.get(line.job_id, (line.timestamp, line.timestamp))[0]
        spoken[line.job_id] = (first, line.timestamp)
    for key in {job.lock_key for job in jobs}:
        spans = sorted(spoken[job.id] for job in jobs if job.lock_key == key and job.id in spoken)
        for (_, ended), (began, _) in pairwise(spans):
            assert began >= ended - timedelta(milliseconds=1), f"two jobs on {key} spoke at the same time"


def _check_repository(cluster: Cluster, folder: Path, jobs: list[Job]) -> None:
    """Every byte can be read; it holds one backup for each job that succeeded, and the catalog the same ones."""
    done = {job.result["backup"] for job in jobs if job.status.startswith("succeeded")}
    with open_repository(
        str(folder), passphrase=None, cache_directory=cluster.folder / "cache" / "check"
    ) as repository:
        found = verify(repository, read_data=True)
        held = {row.backup for row in list_backups(repository).backups}
    assert not found.damage
    assert done <= held <= {job.details["backup_id"] for job in jobs}
    with cluster.sessions() as session:
        assert set(session.scalars(select(BackupRow.backup_id).where(BackupRow.status == "complete"))) == held


def _processes_of(folder: Path) -> set[int]:
    """Return the processes that were started for the service in `folder`, its two servers left out."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (path / "environ").read_bytes()
            if f"LAB_BACKUP_DATA_DIR={folder}".encode() in told:
                found.add(int(path.name))
    return found
