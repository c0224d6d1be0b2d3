"""The service with a long life behind it: lists over many backups and log lines at a steady rate of requests, and many who follow one job."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the servers are those of the tests

import msgspec
from redis import Redis
from sqlalchemy import text

from lab_backup.catalog.base import Sessions
from support.cluster import Cluster

HERE = Path(__file__).parent
APIS = 2
RATE = 200
FOLLOWERS = 500
NEWS_EACH_SECOND = 4
PATIENCE = 600
JOB = "00000000-0000-4000-8000-000000000001"  # the one with very many lines
STORAGE = "00000000-0000-4000-8000-00000000000{}"

# A thousand sources in three storages, four jobs for five backups, and a tenth of all lines in one job.
SEED = """
insert into storage_backends (id, name, type, url, repository_id, config, enabled, threshold, created_at)
  select ('00000000-0000-4000-8000-00000000000' || i)::uuid, 'storage ' || i, 'local', '/nowhere/' || i, 'r' || i, '{}', true, 80, now()
  from generate_series(0, 2) i;
insert into backups (id, backup_id, schedule_id, source_type, source_id, source_name, backup_type, consistency, tags, status, size, compressed_size,
                     storage_backend_id, storage_path, checksum, started_at, completed_at, protected, metadata, created_at)
  select gen_random_uuid(), 'b' || i, null, (array['vm', 'container', 'volume'])[1 + i % 3], 'id-' || i % 1000, 'source-' || i % 1000,
         case when i % 30 = 0 then 'full' else 'incremental' end, 'filesystem', case when i % 7 = 0 then '["daily", "weekly"]'::jsonb else '["daily"]'::jsonb end,
         case when i % 50 = 0 then 'deleted' when i % 997 = 0 then 'damaged' else 'complete' end, 10737418240 + i, 104857600 + i * 7 % 1000003,
         ('00000000-0000-4000-8000-00000000000' || i % 3)::uuid, 'manifests/b' || i, repeat('0', 64), now() - i * interval '5 minutes' - interval '1 minute',
         now() - i * interval '5 minutes', i % 100 = 0, '{"host": "kvm1", "bytes_read": 1000000, "duration_seconds": 60.5, "parent": null, "warnings": [], "notes": []}', now()
  from generate_series(1, :backups) i;
insert into jobs (id, type, status, priority, lock_key, title, storage_backend_id, attempt, started_at, completed_at, metadata, result, progress, lease_epoch, created_at)
  select gen_random_uuid(), (array['backup', 'backup', 'verify', 'prune', 'inventory'])[1 + i % 5],
         case when i % 40 = 0 then 'failed' when i % 90 = 0 then 'interrupted' else 'succeeded' end, 0, 'vm/' || i % 1000, 'back up source-' || i % 1000,
         ('00000000-0000-4000-8000-00000000000' || i % 3)::uuid, 1, now() - i * interval '6 minutes', now() - i * interval '6 minutes' + interval '70 seconds',
         '{"source_type": "vm", "backup_id": "b1"}', '{"backup": "b1", "kind": "incremental", "bytes_read": 1000000, "bytes_stored": 100000}',
         '{"phase": "done", "done": 1, "total": 1, "rate": 0, "eta": 0}', 1, now() - i * interval '6 minutes'
  from generate_series(1, :backups * 4 / 5) i;
insert into jobs (id, type, status, priority, title, attempt, metadata, result, progress, lease_epoch, created_at, started_at, lease_owner, lease_until)
  values ('00000000-0000-4000-8000-000000000001', 'verify', 'running', 0, 'verify everything', 1, '{}', '{}', '{}', 1, now(), now(), 'bench', now() + interval '1 day');
insert into job_logs (job_id, timestamp, level, message)
  select '00000000-0000-4000-8000-000000000001', now() - (:lines / 10 - i) * interval '1 second', 'info', 'a line that says what was read from where, number ' || i
  from generate_series(1, :lines / 10) i;
insert into job_logs (job_id, timestamp, level, message)
  select id, started_at + i * interval '1 second', 'info', 'a line that says what was done, number ' || i
  from (select id, started_at from jobs where lock_key is not null order by created_at limit :lines * 9 / 10 / 20) j, generate_series(1, 20) i;
"""


@dataclass(frozen=True)
class Past:
    """How much there is, and how long it is asked."""

    backups: int
    lines: int
    seconds: int


PASTS = {"full": Past(100_000, 1_000_000, 60), "small": Past(20_000, 100_000, 10)}


def measure_service(size: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the times of lists, and how late news come."""
    past = PASTS[size]
    with Cluster() as cluster:
        say(f"service: {past.backups:,} backups and {past.lines:,} lines")
        seed(cluster.sessions, past)
        for _ in range(APIS):
            cluster.start("api")
        cluster.wait_for_apis()
        token = cluster.sign_in()
        kinds = lists(cluster, token)
        say(f"service: {RATE} requests a second for {past.seconds} s")
        found = ask(cluster, token, kinds, past.seconds)
        say(f"service: {FOLLOWERS} who follow one job")
        news = follow(cluster, token, past.seconds)
    return {"backups": past.backups, "lines": past.lines, "apis": APIS, "rate": RATE, **found, "news": news}


def seed(sessions: Sessions, past: Past) -> None:
    """Fill the tables, and let PostgreSQL look at them as it does by itself after a while."""
    with sessions() as session:
        for statement in SEED.split(";\n"):
            if statement.strip():
                session.execute(text(statement), {"backups": past.backups, "lines": past.lines})
        session.commit()
    with sessions() as session:
        connection = session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        connection.execute(text("vacuum analyze"))


def lists(cluster: Cluster, token: str) -> dict[str, list[str]]:
    """Return what is asked: by kind the paths, of which each request takes one."""

    def deep(path: str, pages: int = 3, **query: str) -> list[str]:
        """Return the pages that follow, by their cursors."""
        found, cursor = [], None
        for _ in range(pages):
            page = cluster.ask("GET", f"{path}?{urlencode({**query, **({'cursor': cursor} if cursor else {})})}", token=token)  # fmt: skip
            cursor = page["next"]
            found.append(f"/api/v1/{path}?{urlencode({**query, 'cursor': cursor})}")
        return found

    return {
        "backups, newest": ["/api/v1/backups"],
        "backups, pages that follow": deep("backups"),
        "backups of a source": [f"/api/v1/backups?source=source-{number}" for number in range(0, 1000, 37)],
        "backups of a storage": [f"/api/v1/backups?storage={STORAGE.format(number)}" for number in range(3)],
        "backups that are damaged": ["/api/v1/backups?status=damaged"],
        "backups with a tag": ["/api/v1/backups?tag=weekly"],
        "backups, largest": ["/api/v1/backups?sort=size", *deep("backups", sort="compressed_size")],
        "backups by name": ["/api/v1/backups?sort=source_name&order=oldest"],
        "jobs, newest": ["/api/v1/jobs", *deep("jobs")],
        "jobs that failed": ["/api/v1/jobs?status=failed"],
        "jobs of a type": ["/api/v1/jobs?type=prune", "/api/v1/jobs?type=verify"],
        "lines of a job": [f"/api/v1/jobs/{JOB}/logs", f"/api/v1/jobs/{JOB}/logs?order=oldest", *deep(f"jobs/{JOB}/logs", order="oldest")],
    }  # fmt: skip


def ask(cluster: Cluster, token: str, kinds: dict[str, list[str]], seconds: int) -> dict[str, Any]:
    """Ask for lists at the steady rate; return the times."""
    places = [urlsplit(url) for url in cluster.urls]
    plan = {"addresses": [[place.hostname, place.port] for place in places], "token": token, "kinds": kinds, "rate": RATE, "seconds": seconds}  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE / "open_loop.py", json.dumps(plan)], capture_output=True, text=True, check=True, timeout=PATIENCE
    )  # fmt: skip
    found = json.loads(done.stdout)
    if found["wrong"]:
        raise RuntimeError(f"{len(found['wrong'])} requests were not answered: {found['wrong'][:3]}")
    together = [value for values in found["times"].values() for value in values]
    return {"all": spread(together), "kinds": {kind: spread(values) for kind, values in found["times"].items()}}


def follow(cluster: Cluster, token: str, seconds: int) -> dict[str, Any]:
    """Publish how far a job is while many follow it; return how late they heard, and that nobody missed anything."""
    urls = [f"{url.replace('http', 'ws', 1)}/ws/jobs/{JOB}" for url in cluster.urls]
    plan = {"urls": urls, "token": token, "count": FOLLOWERS}
    count = seconds * NEWS_EACH_SECOND
    redis = Redis.from_url(cluster.valkey.url)
    with subprocess.Popen([sys.executable, HERE / "followers.py", json.dumps(plan)], stdout=subprocess.PIPE, text=True) as followers:  # fmt: skip
        try:
            assert followers.stdout is not None
            if followers.stdout.readline() != "ready\n":
                raise RuntimeError("the followers did not get through")
            for number in range(count):
                tell(redis, {"status": "running", "progress": {"done": number}, "sent": time.monotonic()})
                time.sleep(1 / NEWS_EACH_SECOND)
            tell(redis, {"status": "succeeded", "progress": {}})
            found = json.loads(followers.communicate(timeout=PATIENCE)[0])
        finally:
            followers.kill()
    if found["got"] != [count] * FOLLOWERS:
        raise RuntimeError(f"of {count} messages some heard {min(found['got'], default=0)}")
    return {"followers": FOLLOWERS, "each_second": NEWS_EACH_SECOND, **spread(found["late"])}


def tell(redis: Redis, news: dict[str, Any]) -> None:
    """Publish as a worker does."""
    redis.publish(f"lab-backup:job:{JOB}", msgspec.json.encode({"job": JOB, **news, "error": None}))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return how many there are, and their median, 99th percentile and highest value."""
    parts = statistics.quantiles(values, n=100, method="inclusive")
    return {"count": len(values), "p50": parts[49], "p99": parts[98], "highest": max(values)}
