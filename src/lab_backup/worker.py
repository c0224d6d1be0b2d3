"""The worker as Celery starts it: `celery -A lab_backup.worker worker`. A composition root."""

import contextlib
import os
import socket
from datetime import UTC, datetime
from logging.handlers import QueueListener
from threading import Event, Thread
from typing import Any
from uuid import UUID

from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down
from redis import Redis

from lab_backup import __version__
from lab_backup.catalog.base import DatabaseError, connect
from lab_backup.catalog.leases import stop_all_of
from lab_backup.catalog.workers import HEARD, hear, say_goodbye
from lab_backup.jobs.broker import TASK, make_app
from lab_backup.jobs.tasks import Tools
from lab_backup.jobs.worker import Worker, owner_name
from lab_backup.metrics.host import host_figures
from lab_backup.notify.logs import configure
from lab_backup.security.sealed import read_or_make_key
from lab_backup.settings import read_settings

settings = read_settings()
_logs: list[QueueListener | None] = []
app = make_app(settings.redis_url)
_made: dict[int, Worker] = {}
_over = Event()


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


@setup_logging.connect
def _log(**_: object) -> None:
    """Log in our own way, not in Celery's; each process of the pool for itself, as threads do not survive a fork."""
    _logs.append(configure("worker", settings.syslog))


@worker_process_init.connect
def _log_in_child(**_: object) -> None:
    _logs.append(configure("worker", settings.syslog))


@app.task(name=TASK)
def run_job(job_id: str) -> None:
    """Run the job with this id."""
    _worker().run(UUID(job_id))


@worker_ready.connect
def _be_heard(sender: Any = None, **_: object) -> None:
    """Say every few seconds that this worker is there, in a thread of the main process."""
    started = datetime.now(UTC)
    queues = sorted(str(queue.name) for queue in app.amqp.queues.consume_from.values())
    slots = int(getattr(getattr(sender, "pool", None), "limit", None) or 1)

    def speak() -> None:
        engine, sessions = connect(settings.database_url)
        while True:
            with contextlib.suppress(DatabaseError), sessions() as session:
                hear(
                    session,
                    name=owner_name(os.getpid()),
                    host=socket.gethostname(),
                    version=__version__,
                    queues=queues,
                    slots=slots,
                    started_at=started,
                    figures=host_figures(settings.cache_directory),
                    now=datetime.now(UTC),
                )
                session.commit()
            if _over.wait(HEARD.total_seconds()):
                break
        engine.dispose()

    Thread(target=speak, name="heartbeat", daemon=True).start()


@worker_shutting_down.connect
def _let_jobs_stop(**_: object) -> None:
    """Celery then waits for its tasks, which end within seconds."""
    _over.set()
    engine, sessions = connect(settings.database_url)
    with contextlib.suppress(DatabaseError), sessions() as session:
        stop_all_of(session, owner_name(os.getpid()))
        say_goodbye(session, owner_name(os.getpid()))
        session.commit()
    engine.dispose()
