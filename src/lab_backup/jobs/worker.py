"""Running a job: the lease is taken and renewed, the operation called, and the row told what came of it."""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any
from uuid import UUID

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from lab_backup.catalog.base import DatabaseError, Session, Sessions
from lab_backup.catalog.leases import LEASE, Lease, claim, finish, renew, write_line
from lab_backup.catalog.news import severity_of, status_before
from lab_backup.catalog.queue import later, retry_of
from lab_backup.catalog.telling import tell
from lab_backup.catalog.work import CANCELLED, FAILED, INTERRUPTED, SUCCEEDED, WARNINGS, Job
from lab_backup.errors import BusyError, LabBackupError
from lab_backup.jobs.progress import JobProgress, StopRequestedError
from lab_backup.jobs.tasks import TASKS, Done, Tools
from lab_backup.storage.base import TransientStorageError

BEAT_SECONDS = 0.5
PASSING = (TransientStorageError, BusyError)
"""What may be gone in a while: the same job is tried again later."""
NEWS = "lab-backup:news"  # where it is published in Redis that inboxes have something new
QUIET = {
    "inventory",
    "usage",
    "notify",
    "gc",
    "prune",
    "rebuild-catalog",
    "mark",
    "delete",
    "housekeeping",
    "heartbeat",
}
STALLED_SECONDS = 3600.0  # no byte moved for so long: something hangs that no time limit of its own ends
DEAF_SECONDS = 300.0  # so much longer, and it does not hear that it is to stop

log = logging.getLogger(__name__)


def owner_name(process: int) -> str:
    """Return what the leases of the worker with that main process are called."""
    return f"{socket.gethostname()}:{process}"


def channel(job: UUID | str) -> str:
    """Return where news of a job are published in Redis."""
    return f"lab-backup:job:{job}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended; `passing`: what it failed of may pass by itself."""

    status: str
    done: Done = field(default_factory=Done)
    error: str | None = None
    hint: str | None = None
    passing: bool = False


def _give_up() -> None:
    """End this process: what hangs in it hears nothing. The lease runs out, and the job is done once more by another one."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Worker:
    """What runs jobs in this process. One of which no byte moves for `stalled_seconds` is interrupted, and given up where it does not hear that."""

    sessions: Sessions
    redis: Redis
    tools: Tools
    stalled_seconds: float = STALLED_SECONDS
    deaf_seconds: float = DEAF_SECONDS
    give_up: Callable[[], None] = _give_up

    def run(self, job_id: UUID) -> str | None:
        """Run the job and return how it ended; None where it was not ours to run."""
        with self.sessions() as session:
            lease = claim(session, job_id, owner_name(os.getppid()))
            if lease is None:
                return None
            job = session.get_one(Job, job_id)
        progress = JobProgress(lambda level, text: self._line(job_id, level, text))
        log.info("job started", extra={"job": str(job_id), "type": job.type})
        with self._held(lease, progress):
            ending = self._do(job, progress)
        return self._end(job, lease, progress, ending)

    def _do(self, job: Job, progress: JobProgress) -> Ending:
        try:
            done = TASKS[job.type](job, self.tools, progress)
        except StopRequestedError as stop:
            return Ending(CANCELLED if stop.how == "cancel" else INTERRUPTED, error=stop.message)
        except LabBackupError as error:
            return Ending(FAILED, error=error.message, hint=error.hint, passing=isinstance(error, PASSING))
        except MemoryError:
            return Ending(FAILED, error="there is not enough memory", hint="let fewer jobs run at once")
        except OSError as error:
            return Ending(FAILED, error=f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}")
        except Exception as error:  # whatever happens ends in a row
            log.exception("a fault in lab-backup itself", extra={"job": str(job.id)})
            return Ending(
                FAILED,
                error=f"a fault in Lab Backup itself: {type(error).__name__}",
                hint="the worker's log has the details; please report it",
            )
        return Ending(WARNINGS if done.warnings else SUCCEEDED, done)

    def _end(self, job: Job, lease: Lease, progress: JobProgress, ending: Ending) -> str | None:
        """Write how the job ended, and what is to be remembered, in one transaction."""
        try:
            written = self._write_end(job, lease, progress, ending)
        except DatabaseError as wrong:
            log.exception("what a job did cannot be recorded", extra={"job": str(job.id)})
            ending = Ending(
                FAILED,
                error=f"what was done cannot be recorded: {type(wrong).__name__}",
                hint="the worker's log has the details; `rebuild-catalog` of the storage brings backups back into the list",
            )
            written = self._write_end(job, lease, progress, ending)
        if not written:
            log.warning("the lease was lost", extra={"job": str(job.id)})
            return None
        state = {"status": ending.status, "progress": progress.state(), "error": ending.error}
        self._publish(job.id, state)
        log.info("job ended", extra={"job": str(job.id), "status": ending.status})
        return ending.status

    def _write_end(self, job: Job, lease: Lease, progress: JobProgress, ending: Ending) -> bool:
        status, done, error = ending.status, ending.done, ending.error
        with self.sessions() as session:
            if not finish(
                session,
                lease,
                status=status,
                result=done.result,
                progress=progress.state(),
                error=error,
                hint=ending.hint,
            ):
                session.rollback()
                return False
            for text in done.warnings:
                write_line(session, job.id, "warning", text)
            if error:
                write_line(session, job.id, "error", error)
            write_line(session, job.id, "info", status)
            again = (
                retry_of(job) if status == INTERRUPTED else later(job, datetime.now(UTC)) if ending.passing else None
            )
            if again is not None and again.not_before is not None:
                write_line(session, job.id, "info", f"tried again at {again.not_before:%Y-%m-%d %H:%M:%S} UTC")
            session.add_all([*done.follow_up, *([again] if again else [])])
            done.record(session)
            # What is tried again is told when it has failed for good, or works.
            told = (status != FAILED or again is None) and self._tell(session, job, status, error, done.warnings)
            session.commit()
        if told:
            with contextlib.suppress(RedisError):
                self.redis.publish(NEWS, b"")
        return True

    def _tell(self, session: Session, job: Job, status: str, error: str | None, warnings: tuple[str, ...]) -> bool:
        """Let those know who asked for it; return whether there is anybody.

        What only looks at things, or keeps house, tells when it begins to fail or to warn, and when it is well again: not every five minutes.
        """
        before = status_before(session, job)
        severity = severity_of(job, status, before)
        if severity is None or (job.type in QUIET and (status == before or {status, before} <= {SUCCEEDED, None})):
            return False
        text = "\n".join([error or status, *warnings, f"Job {job.id}"])
        return tell(
            session, kind=f"{job.type} {status}", severity=severity, subject=f"{job.title}: {status}", message=text
        )

    @contextmanager
    def _held(self, lease: Lease, progress: JobProgress) -> Iterator[None]:
        over = Event()
        thread = Thread(target=self._hold, args=(lease, progress, over), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _hold(self, lease: Lease, progress: JobProgress, over: Event) -> None:
        """Renew the lease until the job is over. Who cannot renew it lets the job stop before others take it for dead."""
        safe = LEASE.total_seconds() / 2  # the rest is for what cannot be stopped at once
        progress.hold(safe)
        stalled = False
        while not over.wait(BEAT_SECONDS):
            state = progress.state()
            asked = time.monotonic()
            try:
                with self.sessions() as session:
                    held = renew(session, lease, state)
            except DatabaseError:
                continue
            if held is None:
                progress.stop("lost")
                return
            progress.hold(safe - (time.monotonic() - asked))
            if held.stop:
                progress.stop(held.stop)
            idle = progress.idle_seconds
            if idle > self.stalled_seconds and not stalled:
                stalled = True
                self._line(lease.job, "error", f"no byte has moved for {idle:.0f} seconds: the job is stopped")
                progress.stop("interrupt")
            if stalled and idle > self.stalled_seconds + self.deaf_seconds:
                self._line(lease.job, "error", "the job does not stop: its process is given up")
                self.give_up()
                return
            self._publish(lease.job, {"status": "running", "progress": state})

    def _line(self, job: UUID, level: str, text: str) -> None:
        with contextlib.suppress(DatabaseError), self.sessions() as session:
            write_line(session, job, level, text)
            session.commit()

    def _publish(self, job: UUID, news: dict[str, Any]) -> None:
        with contextlib.suppress(RedisError):
            self.redis.publish(channel(job), msgspec.json.encode({"job": str(job), **news}))
