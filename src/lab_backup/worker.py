"""The worker as Celery starts it: `celery -A lab_backup.worker worker`. A composition root."""

import os
from uuid import UUID

from celery.signals import worker_shutting_down
from redis import Redis

from lab_backup.catalog.base import connect
from lab_backup.catalog.leases import stop_all_of
from lab_backup.jobs.broker import TASK, make_app
from lab_backup.jobs.tasks import Tools
from lab_backup.jobs.worker import Worker, owner_name
from lab_backup.security.sealed import read_or_make_key
from lab_backup.settings import read_settings

settings = read_settings()
app = make_app(settings.redis_url)
_made: dict[int, Worker] = {}


def _worker() -> Worker:
    """Return this process' worker, made after the fork: neither connections nor indexes may be inherited."""
    number = os.getpid()
    if number not in _made:
        _, sessions = connect(settings.database_url)
        master = read_or_make_key(settings.secrets_directory / "master.key")
        _made[number] = Worker(
            sessions, Redis.from_url(settings.redis_url), Tools(sessions, master, settings.cache_directory)
        )
    return _made[number]


@app.task(name=TASK)
def run_job(job_id: str) -> None:
    """Run the job with this id."""
    _worker().run(UUID(job_id))


@worker_shutting_down.connect
def _let_jobs_stop(**_: object) -> None:
    """Celery then waits for its tasks, which end within seconds."""
    engine, sessions = connect(settings.database_url)
    with sessions() as session:
        stop_all_of(session, owner_name(os.getpid()))
    engine.dispose()
