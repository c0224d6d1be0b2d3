"""The Celery application that carries the ids of jobs."""

import logging
from collections.abc import Callable
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError

TASK = "lab_backup.run_job"
QUEUE = "default"


def make_app(redis_url: str) -> Celery:
    """Return the application. What it carries is lost without harm: the rows of jobs are sent again, and one that came twice finds its lease taken."""
    app = Celery("lab_backup", broker=_broker(redis_url))
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        task_acks_late=True,  # else a worker takes one more than it can run, and loses it when it is killed
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"global_keyprefix": "lab-backup:"},
        enable_utc=True,
    )
    return app


def _broker(redis_url: str) -> str:
    return "redis+socket://" + redis_url.removeprefix("unix://") if redis_url.startswith("unix://") else redis_url


def sender(app: Celery) -> Callable[[UUID, str], None]:
    """Return what sends a job's id to the workers of a queue. Raises ConnectionError where the broker is out of reach."""

    def send(job: UUID, queue: str) -> None:
        logging.getLogger(__name__).info("sent", extra={"job": str(job)})
        try:
            app.send_task(TASK, args=(str(job),), queue=queue, retry=False)
        except OperationalError as error:
            raise ConnectionError("the broker cannot be reached") from error

    return send
