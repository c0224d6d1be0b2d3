"""The beat: of all that run, one sends queued jobs, serves schedules, ends what dead workers left, and keeps house."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from uuid import UUID

from lab_backup.catalog.base import DatabaseError, Session, Sessions
from lab_backup.catalog.leader import Leader
from lab_backup.catalog.news import NotificationConfig, unsent
from lab_backup.catalog.places import KvmHost, PodmanHost, Storage
from lab_backup.catalog.preferences import read_preferences
from lab_backup.catalog.queue import backup_job, end_abandoned, new_job, take_next, waiting_or_running
from lab_backup.catalog.records import enabled, fire, period_over
from lab_backup.catalog.sources import members, name_of
from lab_backup.catalog.telling import tell
from lab_backup.catalog.watching import watch
from lab_backup.catalog.work import Job, Schedule
from lab_backup.errors import LabBackupError
from lab_backup.policy.cron import due, parse_zone
from lab_backup.repository.session import new_backup_id

STEP_SECONDS = 0.5
INVENTORY = timedelta(minutes=5)
NEWS = timedelta(minutes=5)
USAGE = timedelta(hours=1)
RETENTION = timedelta(days=1)
HOUSEKEEPING = timedelta(hours=6)
HEARTBEAT = timedelta(seconds=30)
REPORT = timedelta(days=7)
WATCH = timedelta(seconds=30)


log = logging.getLogger(__name__)
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Beat:
    """Works by steps; `send` gives a job's id to the workers, `clock` tells the time in UTC."""

    sessions: Sessions
    leader: Leader
    send: Callable[[UUID, str], None]
    clock: Callable[[], datetime]
    at_once: int = 1024

    def run(self, over: Event) -> None:
        """Work until `over`. A database or broker that is away is waited for."""
        away = False
        while not over.wait(STEP_SECONDS):
            try:
                if self.leader.leads():
                    self.step()
                away = False
            except (DatabaseError, OSError) as error:
                if not away:
                    log.warning("waiting for the database or Redis: %s", type(error).__name__)
                away = True
        self.leader.resign()

    def step(self) -> None:
        """Do what is due now."""
        now = self.clock()
        with self.sessions() as session:
            for job in end_abandoned(session, now):
                log.warning("the worker of a job is gone", extra={"job": str(job.id)})
            session.commit()
            self._serve_schedules(session, now)
            self._keep_house(session, now)
            wanted = read_preferences(session)
            sent = take_next(
                session,
                now=now,
                at_once=min(self.at_once, wanted.jobs_at_once),
                maintenance=wanted.maintenance,
                resting=wanted.resting,
            )
            session.commit()
        for job in sent:
            self.send(job.id, job.details.get("queue") or "default")

    def _serve_schedules(self, session: Session, now: datetime) -> None:
        """Queue what is due. Of several times that passed while nothing ran only the last one is served."""
        for schedule in enabled(session, Schedule):
            try:
                times = due(schedule.cron_expression, parse_zone(schedule.timezone), after=schedule.looked_at, now=now)
            except LabBackupError as error:
                log.warning("schedule %s: %s", schedule.name, error)
                continue
            if times:
                schedule.looked_at = now
                if fire(session, schedule, times[-1]):
                    self._queue(session, schedule, now)
                    if len(times) > 1:
                        log.warning("schedule %s missed %d runs", schedule.name, len(times) - 1)
                        tell(
                            session,
                            kind="schedule missed",
                            severity="warning",
                            subject=f"{schedule.name} missed {len(times) - 1} runs",
                            message="The service did not run when they were due. The last of them is made up for now.",
                        )
                session.commit()

    def _queue(self, session: Session, schedule: Schedule, now: datetime) -> None:
        """Queue the backups of what the schedule means, each somewhere in its jitter."""
        sources = members(session, schedule)
        if not sources:
            log.warning("schedule %s: there is nothing to back up", schedule.name)
        for source in sources:
            job = backup_job(
                source,
                schedule.storage_backend_id,
                backup_id=new_backup_id(),
                schedule=schedule,
            )
            if schedule.jitter_seconds:
                job.not_before = now + timedelta(seconds=_random.uniform(0, schedule.jitter_seconds))
            session.add(job)

    def _keep_house(self, session: Session, now: datetime) -> None:
        if period_over(session, "period/watch", WATCH, now):
            watch(session, now)
        for name, interval, jobs in (
            ("inventory", INVENTORY, _inventories),
            ("news", NEWS, _untold),
            ("usage", USAGE, _usages),
            ("retention", RETENTION, _retention),
            ("housekeeping", HOUSEKEEPING, _housekeeping),
            ("heartbeat", HEARTBEAT, _heartbeat),
            ("report", REPORT, _report),
        ):
            if period_over(session, f"period/{name}", interval, now, at_once=name != "report"):
                for job in jobs(session):
                    self._once(session, job)

    def _once(self, session: Session, job: Job) -> None:
        if not waiting_or_running(session, job.lock_key or "", job.type):
            session.add(job)


def _inventories(session: Session) -> Iterator[Job]:
    kinds: tuple[tuple[type[KvmHost | PodmanHost], str], ...] = ((KvmHost, "kvm"), (PodmanHost, "podman"))
    for table, word in kinds:
        for host in enabled(session, table):
            details = {"host_type": word, "host": str(host.id)}
            yield new_job("inventory", details, title=f"look at {host.name}", lock_key=f"host/{host.id}")


def _untold(session: Session) -> Iterator[Job]:
    """Try again to tell what could not be told."""
    for channel in enabled(session, NotificationConfig):
        if unsent(session, channel.id):
            details = {"channel": str(channel.id)}
            yield new_job("notify", details, title="send messages", lock_key=f"notify/{channel.id}", priority=8)


def _usages(session: Session) -> Iterator[Job]:
    for storage in enabled(session, Storage):
        yield new_job("usage", {}, title=f"space of {storage.name}", lock_key=f"usage/{storage.id}", storage=storage.id)


def _housekeeping(_: Session) -> Iterator[Job]:
    yield new_job("housekeeping", {}, title="forget what is old", lock_key="housekeeping", priority=-2)


def _report(_: Session) -> Iterator[Job]:
    yield new_job("report", {}, title="weekly report", lock_key="report", priority=-2)


def _heartbeat(session: Session) -> Iterator[Job]:
    if read_preferences(session).heartbeat_url:
        yield new_job("heartbeat", {}, title="tell the watcher", lock_key="heartbeat", priority=8)


def _retention(session: Session) -> Iterator[Job]:
    """Each schedule's retention, then a collection in each storage."""
    for schedule in enabled(session, Schedule):
        if any(schedule.retention_config.values()):
            yield new_job(
                "prune",
                {},
                title=f"retention of {name_of(session, schedule)}",
                lock_key=f"prune/{schedule.id}",
                storage=schedule.storage_backend_id,
                schedule=schedule.id,
            )
    for storage in enabled(session, Storage):
        yield new_job(
            "gc", {}, title=f"collect in {storage.name}", lock_key=f"gc/{storage.id}", storage=storage.id, priority=-1
        )
