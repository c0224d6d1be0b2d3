"""How many jobs run at once on a host and in a storage, on a real PostgreSQL with many who want them."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from lab_backup.catalog.base import Sessions, connect
from lab_backup.catalog.leases import claim, finish
from lab_backup.catalog.places import KvmHost, PodmanHost, Storage
from lab_backup.catalog.queue import new_job, take_next
from lab_backup.catalog.work import Job
from support.catalog import empty_tables, running_database

NOW = datetime.now(UTC)


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


def place(sessions: Sessions, kind: type[KvmHost | PodmanHost | Storage], at_once: int) -> UUID:
    """Make a host or storage with a limit."""
    name = uuid4().hex
    with sessions() as session:
        row = (
            Storage(name=name, type="local", url=f"/{name}", repository_id=name, at_once=at_once)
            if kind is Storage
            else kind(name=name, uri="unix:///nowhere", at_once=at_once)
        )
        session.add(row)
        session.commit()
        return row.id


def queue(sessions: Sessions, count: int, host: UUID | None, storage: UUID | None, kind: str = "backup") -> list[UUID]:
    """Queue jobs on this host, into this storage."""
    with sessions() as session:
        details = {} if host is None else {"host": str(host)}
        jobs = [new_job(kind, details, title="t", lock_key=str(uuid4()), storage=storage) for _ in range(count)]
        session.add_all(jobs)
        session.commit()
        return [job.id for job in jobs]


def sent(sessions: Sessions, at_once: int = 100, *, now: datetime = NOW) -> Counter[tuple[str | None, UUID | None]]:
    """Return how many jobs are sent now, by host and storage."""
    with sessions() as session:
        found = Counter(
            (job.details.get("host"), job.storage_backend_id) for job in take_next(session, now=now, at_once=at_once)
        )
        session.commit()
        return found


def test_no_more_are_sent_than_host_and_storage_take_and_those_behind_them_do_not_wait(sessions: Sessions) -> None:
    """Of two hundred jobs first in the queue two are sent, since their host takes two; the one behind them goes all the same, and so does what only looks."""
    host, other = place(sessions, KvmHost, 2), place(sessions, PodmanHost, 0)
    storage, free = place(sessions, Storage, 3), place(sessions, Storage, 0)
    queue(sessions, 200, host, free)
    queue(sessions, 200, other, storage)
    queue(sessions, 1, other, free)
    queue(sessions, 5, host, free, "inventory")
    found: Counter[tuple[str | None, UUID | None]] = Counter()
    for _ in range(3):
        found += sent(sessions, 16)
    assert found == {(str(host), free): 2 + 5, (str(other), storage): 3, (str(other), free): 1}


def test_of_many_claimers_no_more_get_a_job_than_host_and_storage_take(sessions: Sessions) -> None:
    """Sixteen threads that claim sixteen jobs at once, all of them sent: never more at a time than two on the host, three in the storage; in the end all were done."""
    host, storage = place(sessions, KvmHost, 2), place(sessions, Storage, 3)
    jobs = queue(sessions, 8, host, storage) + queue(sessions, 8, None, storage)
    seen: list[tuple[int, int]] = []
    wrong: list[Exception] = []
    start = threading.Barrier(len(jobs), timeout=60)
    end = time.monotonic() + 60

    def work(job: UUID) -> None:
        try:
            start.wait()
            with sessions() as session:
                while (lease := claim(session, job, "w")) is None:  # as the beat would send it again
                    assert time.monotonic() < end, "no room in time"
                    time.sleep(0.01)
                running = select(Job).where(Job.status == "running").subquery()
                on_host = select(func.count()).where(running.c.metadata["host"].astext == str(host))
                in_storage = select(func.count()).where(running.c.storage_backend_id == storage)
                seen.append((session.scalar(on_host) or 0, session.scalar(in_storage) or 0))
                finish(session, lease, status="succeeded", result={}, progress={})
                session.commit()
        except Exception as error:  # noqa: BLE001  the test itself tells of it
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) == len(jobs)
    assert max(host for host, _ in seen) <= 2
    assert max(storage for _, storage in seen) <= 3


def test_a_job_that_finds_no_room_is_sent_again_as_soon_as_there_is_some(sessions: Sessions) -> None:
    """A message that came late finds its host full; its job is not lost for a minute."""
    host = place(sessions, KvmHost, 1)
    first, second = queue(sessions, 2, host, None)
    with sessions() as session:
        session.execute(update(Job).values(dispatched_at=NOW - timedelta(seconds=5)))
        session.commit()
        lease = claim(session, first, "w")
        assert lease is not None
        assert claim(session, second, "v") is None
        assert sent(sessions) == {}
        finish(session, lease, status="succeeded", result={}, progress={})
        session.commit()
    assert sent(sessions) == {(str(host), None): 1}


def test_two_jobs_on_one_thing_are_not_even_sent_together(sessions: Sessions) -> None:
    """The second waits in the queue, not with a worker, also where a step of the beat lies between them."""
    with sessions() as session:
        session.add_all([new_job("backup", {}, title="t", lock_key="vm/1") for _ in range(3)])
        session.commit()
    assert sum(sent(sessions).values()) == 1
    assert sum(sent(sessions).values()) == 0
