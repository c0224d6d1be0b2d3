"""Jobs of which no byte moves, on a real PostgreSQL."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import select

from lab_backup.catalog.base import Sessions, connect
from lab_backup.catalog.queue import new_job
from lab_backup.catalog.work import Job, JobLog
from lab_backup.jobs.progress import JobProgress
from lab_backup.jobs.tasks import TASKS, Done, Tools
from lab_backup.jobs.worker import Worker
from support.catalog import empty_tables, running_database

STALLED = 1.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run a PostgreSQL and return its address."""
    with running_database() as address:
        yield address


@pytest.fixture
def sessions(url: str) -> Iterator[Sessions]:
    """Return sessions on empty tables."""
    engine, made = connect(url)
    with engine.begin() as connection:
        empty_tables(connection)
    yield made
    engine.dispose()


def run(
    sessions: Sessions,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: Callable[[JobProgress], None],
    give_up: Callable[[], None],
) -> tuple[str | None, list[str], list[Job]]:
    """Run a job that does `task`; return how it ended, its lines, and the jobs that were queued for it."""

    def do(_job: Job, _tools: Tools, progress: JobProgress) -> Done:
        progress.start(None, "working")
        task(progress)
        return Done()

    changed: dict[str, Any] = {**TASKS, "verify": do}
    monkeypatch.setattr("lab_backup.jobs.worker.TASKS", changed)
    with sessions() as session:
        job = new_job("verify", {}, title="t")
        session.add(job)
        session.commit()
    nowhere = Redis.from_url("unix:///nowhere/redis.sock")  # news are not needed for this
    worker = Worker(sessions, nowhere, Tools(sessions, bytes(32), folder), STALLED, STALLED, give_up)
    status = worker.run(job.id)
    with sessions() as session:
        lines = list(session.scalars(select(JobLog.message).where(JobLog.job_id == job.id).order_by(JobLog.id)))
        return status, lines, list(session.scalars(select(Job).where(Job.retry_of == job.id)))


def never() -> None:
    """Fail: nothing was to be given up."""
    raise AssertionError("the process was given up")


def test_a_job_of_which_no_byte_moves_is_interrupted_and_done_once_more(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to stop after the limit, says so once, and a second try is queued."""

    def hang(progress: JobProgress) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.02)
            progress.check()

    status, lines, again = run(sessions, tmp_path, monkeypatch, hang, never)
    assert status == "interrupted"
    assert len([line for line in lines if "no byte has moved" in line]) == 1
    assert [job.attempt for job in again] == [2]


def test_a_slow_job_of_which_bytes_move_goes_on(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the limit, a byte now and then: it succeeds."""

    def crawl(progress: JobProgress) -> None:
        for _ in range(12):
            time.sleep(STALLED / 4)
            progress.advance(1)

    status, lines, again = run(sessions, tmp_path, monkeypatch, crawl, never)
    assert (status, again) == ("succeeded", [])
    assert not [line for line in lines if "no byte" in line]


def test_a_job_that_does_not_hear_that_it_is_to_stop_is_given_up_with_its_process(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs where it asks nobody, as in a system call, ends by the end of its process, and says so."""
    given_up = Event()

    def deaf(_: JobProgress) -> None:
        assert given_up.wait(60)

    _, lines, _ = run(sessions, tmp_path, monkeypatch, deaf, given_up.set)
    assert lines[1].startswith("no byte has moved")
    assert lines[2] == "the job does not stop: its process is given up"
