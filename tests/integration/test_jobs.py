"""Queue, leases, schedules and migrations on a real PostgreSQL: what must hold when workers die and several of everything run."""

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, select, text, update

from lab_backup.catalog.base import Base, Sessions, connect
from lab_backup.catalog.leader import Leader
from lab_backup.catalog.leases import claim, finish, renew
from lab_backup.catalog.migrate import configuration, migrate, newest
from lab_backup.catalog.news import Notification, NotificationConfig
from lab_backup.catalog.people import ApiToken, User
from lab_backup.catalog.places import Container, PodmanHost, Storage
from lab_backup.catalog.preferences import Preferences, write_preferences
from lab_backup.catalog.queue import end_abandoned, new_job, take_next
from lab_backup.catalog.records import known_backups, store_backup
from lab_backup.catalog.watching import watch
from lab_backup.catalog.work import Firing, Job, Schedule
from lab_backup.catalog.workers import hear, say_goodbye
from lab_backup.errors import BusyError, LabBackupError
from lab_backup.jobs.beat import Beat
from lab_backup.jobs.tasks import TASKS, Done, Listing, Tools
from lab_backup.jobs.worker import Worker
from lab_backup.repository.errors import WrongKeyError
from lab_backup.service.account import service_account
from lab_backup.service.database import Database
from lab_backup.service.folders import prepare
from lab_backup.storage.base import TransientStorageError

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run a PostgreSQL and return its address; the tables are there."""
    folder = Path(tempfile.mkdtemp(prefix="lb-pg-"))
    try:
        account = service_account()
        prepare(folder, account)
        database = Database(folder, account)
        process = database.start()
        try:
            migrate(database.url)
            yield database.url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def sessions(url: str) -> Iterator[Sessions]:
    """Return sessions on empty tables."""
    engine, made = connect(url)
    with engine.begin() as connection:
        names = ", ".join(table.name for table in Base.metadata.sorted_tables if table.name != "audit_logs")
        connection.execute(text(f"truncate {names} cascade"))  # names of our own
    yield made
    engine.dispose()


@dataclass
class Sent:
    """Remembers what was sent."""

    jobs: list[UUID] = field(default_factory=list)

    def __call__(self, job: UUID, _queue: str) -> None:
        """Remember the job."""
        self.jobs.append(job)


def queued(sessions: Sessions, *keys: str | None) -> list[UUID]:
    """Add jobs with these lock keys and return their ids."""
    with sessions() as session:
        jobs = [new_job("usage", {}, title="t", lock_key=key) for key in keys]
        session.add_all(jobs)
        session.commit()
        return [job.id for job in jobs]


def test_of_many_workers_one_gets_a_job(sessions: Sessions) -> None:
    """Twenty threads that claim the same job at once: one lease."""
    (job,) = queued(sessions, "a")
    leases = []

    def take() -> None:
        with sessions() as session:
            leases.append(claim(session, job, "w"))

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in leases if lease]) == 1


def test_two_jobs_on_one_source_never_run_at_once(sessions: Sessions) -> None:
    """The second is not sent while the first runs, and is refused to a worker that got it all the same."""
    first, second, other = queued(sessions, "vm/1", "vm/1", "vm/2")
    with sessions() as session:
        assert {job.id for job in take_next(session, now=NOW, at_once=10)} == {first, other}
        session.commit()
        lease = claim(session, first, "w")
        assert lease is not None
        assert claim(session, second, "v") is None
        assert take_next(session, now=NOW, at_once=10) == []
        assert finish(session, lease, status="succeeded", result={}, progress={})
        session.commit()
        assert [job.id for job in take_next(session, now=NOW, at_once=10)] == [second]


def test_no_more_jobs_are_sent_than_may_run_and_the_urgent_ones_first(sessions: Sessions) -> None:
    """Of five jobs two go, the one with the higher priority before the older ones; a message that got lost is sent again later."""
    queued(sessions, *[None] * 4)
    with sessions() as session:
        urgent = new_job("restore", {}, title="t", priority=9)
        session.add(urgent)
        session.flush()
        sent = take_next(session, now=NOW, at_once=2)
        assert sent[0].id == urgent.id
        assert len(sent) == 2
        assert take_next(session, now=NOW, at_once=2) == []
        assert len(take_next(session, now=NOW + timedelta(minutes=2), at_once=2)) == 2


def test_a_job_of_a_dead_worker_is_interrupted_and_done_once_more(sessions: Sessions) -> None:
    """After its lease has run out: a second try is queued, its late worker can write nothing any more, and after the second try it ends."""
    (job,) = queued(sessions, "a")
    with sessions() as session:
        lease = claim(session, job, "w")
        assert lease is not None
        assert end_abandoned(session, datetime.now(UTC)) == []
        late = datetime.now(UTC) + timedelta(minutes=1)
        assert [ended.id for ended in end_abandoned(session, late)] == [job]
        session.commit()
        assert renew(session, lease, {}) is None
        assert not finish(session, lease, status="succeeded", result={}, progress={})
        (again,) = session.scalars(select(Job).where(Job.retry_of == job)).all()
        assert (again.status, again.attempt, again.lock_key) == ("queued", 2, "a")
        assert claim(session, again.id, "v") is not None
        assert len(end_abandoned(session, late)) == 1
        session.commit()
        assert session.scalars(select(Job).where(Job.status == "queued")).all() == []


def scheduled(sessions: Sessions, cron: str, looked_at: datetime) -> UUID:
    """Make a schedule for a container, and all that it needs."""
    with sessions() as session:
        host = PodmanHost(name="h", uri="unix:///nowhere", enabled=False)
        storage = Storage(name="s", type="local", url="/nowhere", repository_id="r", enabled=False)
        session.add_all([host, storage])
        session.flush()
        source = Container(
            podman_host_id=host.id, name="web", container_id="1", image="i", state="running", seen_at=NOW
        )
        session.add(source)
        session.flush()
        made = Schedule(
            name="n", source_type="container", source_id=source.id, cron_expression=cron, storage_backend_id=storage.id, looked_at=looked_at,
        )  # fmt: skip
        session.add(made)
        session.commit()
        return made.id


def test_a_schedule_is_served_once_by_several_beats_and_once_after_a_long_pause(url: str, sessions: Sessions) -> None:
    """Three beats, of which one leads; two days of missed runs give one backup, and the next run comes at its time. When the leader goes, another one takes over."""
    now = [datetime(2026, 5, 4, 12, 0, tzinfo=UTC)]
    schedule = scheduled(sessions, "0 * * * *", now[0] - timedelta(days=2))
    sent = Sent()
    engines = [create_engine(url) for _ in range(3)]
    beats = [Beat(sessions, Leader(engine), sent, lambda: now[0]) for engine in engines]
    try:
        leading = [beat for beat in beats if beat.leader.leads()]
        assert len(leading) == 1
        for _ in range(3):
            leading[0].step()
        assert backups_of(sessions, schedule) == 1
        with sessions() as session:
            assert [session.get_one(Job, job).type for job in sent.jobs].count("backup") == 1
        now[0] += timedelta(minutes=59)
        leading[0].step()
        assert backups_of(sessions, schedule) == 1
        leading[0].leader.resign()
        other = next(beat for beat in beats if beat is not leading[0] and beat.leader.leads())
        now[0] += timedelta(minutes=2)
        other.step()
        assert backups_of(sessions, schedule) == 2
        with sessions() as session:  # a beat that believed it led would be stopped by the row itself
            session.execute(update(Schedule).values(looked_at=now[0] - timedelta(hours=1)))
            session.commit()
        leading[0].step()
        assert backups_of(sessions, schedule) == 2
        with sessions() as session:
            assert len(session.scalars(select(Firing)).all()) == 2
    finally:
        for beat in beats:
            beat.leader.resign()
        for engine in engines:
            engine.dispose()


def backups_of(sessions: Sessions, schedule: UUID) -> int:
    """Return how many backups a schedule has asked for."""
    with sessions() as session:
        return len(session.scalars(select(Job).where(Job.schedule_id == schedule, Job.type == "backup")).all())


def test_a_backup_that_was_made_while_the_repository_was_listed_stays_in_the_catalog(sessions: Sessions) -> None:
    """A list from before knows nothing of it. What the catalog knew and the repository has no more goes; what cannot be read stays."""
    with sessions() as session:
        storage = Storage(name="s", type="local", url="/nowhere", repository_id="r")
        session.add(storage)
        session.flush()
        for name in ("kept", "gone", "unreadable"):
            store_backup(session, row_of(storage.id, name))
        before = known_backups(session, storage.id)
        store_backup(session, row_of(storage.id, "meanwhile"))
        Listing(storage.id, [], before - {"kept", "unreadable"}, {"manifests/unreadable": "damaged"}).record(session)
        assert known_backups(session, storage.id) == {"kept", "unreadable", "meanwhile"}


def row_of(storage: UUID, name: str) -> dict[str, object]:
    """Return the columns of some backup."""
    return {
        "backup_id": name, "schedule_id": None, "source_type": "vm", "source_id": "u", "source_name": "web", "backup_type": "full",
        "consistency": "crash", "tags": [], "status": "complete", "size": 1, "compressed_size": 1, "storage_backend_id": storage,
        "storage_path": f"manifests/{name}", "checksum": "", "completed_at": NOW, "protected": False, "metadata": {},
    }  # fmt: skip


def test_the_tables_are_what_the_program_believes_and_can_be_taken_down(url: str) -> None:
    """After all migrations nothing differs from the classes; each goes down and up again; one that is not known is refused."""
    engine: Engine = create_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []
            assert context.get_current_revision() == newest()
            command.downgrade(configuration(connection), "base")
            connection.commit()
            assert connection.scalar(text("select count(*) from pg_tables where schemaname = 'public'")) == 1
            for version in ("0001",):
                command.upgrade(configuration(connection), version)
                connection.commit()
                connection.execute(
                    text(
                        "insert into users (id, username, email, password_hash, role, enabled, failures) values (gen_random_uuid(), 'ada', '', 'x', 'admin', true, 0)"
                    )
                )
                connection.commit()
                command.upgrade(configuration(connection), "head")
                connection.commit()
                assert connection.scalar(text("select username from users where not totp_confirmed")) == "ada"
                command.downgrade(configuration(connection), "base")
                connection.commit()
        assert migrate(url) == newest()
        with engine.begin() as connection:
            connection.execute(text("update alembic_version set version_num = '9999'"))
        with pytest.raises(LabBackupError, match="newer version"):
            migrate(url)
        with engine.begin() as connection:
            connection.execute(text("update alembic_version set version_num = :version"), {"version": newest()})
    finally:
        engine.dispose()


class Silence:
    """A Redis that nobody listens to."""

    def publish(self, *_: object) -> int:
        """Tell nobody."""
        return 0


def test_what_may_pass_is_tried_again_ever_later_and_told_once(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that does not answer: four attempts, 1, 4 and 16 minutes apart, and one message; a wrong passphrase is tried once; a restore is left to people."""
    failing: list[LabBackupError] = []

    def fail(*_: object) -> Done:
        raise failing[0]

    for kind in ("gc", "restore"):
        monkeypatch.setitem(cast("dict[str, object]", TASKS), kind, fail)
    with sessions() as session:
        user = User(username="u", password_hash="x", role="admin")
        session.add(user)
        session.flush()
        session.add(NotificationConfig(user_id=user.id, name="c", type="webhook", address="", secret="", config={}))
        session.commit()
    worker = Worker(sessions, Silence(), Tools(sessions, bytes(32), tmp_path))  # type: ignore[arg-type]  # no more of it is used

    def attempts(kind: str, error: LabBackupError) -> list[Job]:
        failing[:] = [error]
        with sessions() as session:
            first = new_job(kind, {}, title="t", lock_key=f"{kind}/{error}")
            session.add(first)
            session.commit()
            key = first.lock_key
        while True:
            with sessions() as session:
                rows = list(session.scalars(select(Job).where(Job.lock_key == key).order_by(Job.attempt)))
            if rows[-1].status != "queued":
                return rows
            assert worker.run(rows[-1].id) == "failed"

    tried = attempts("gc", TransientStorageError("no answer"))
    assert [job.attempt for job in tried] == [1, 2, 3, 4]
    waits = [
        job.not_before - before.completed_at
        for before, job in pairwise(tried)
        if job.not_before and before.completed_at
    ]
    assert [round(wait.total_seconds() / 60) for wait in waits] == [1, 4, 16]
    assert len(attempts("gc", BusyError("somebody else"))) == 4
    assert len(attempts("gc", WrongKeyError("wrong"))) == 1
    assert len(attempts("restore", TransientStorageError("no answer"))) == 1
    with sessions() as session:
        told = list(session.scalars(select(Notification).order_by(Notification.created_at)))
        assert [row.type for row in told] == ["gc failed", "gc failed", "gc failed", "restore failed"]
        assert take_next(session, now=datetime.now(UTC), at_once=10) != []


def test_silent_workers_and_expiring_tokens_are_told_once(sessions: Sessions) -> None:
    """A worker that is not heard is told of, once, and once more when it is back; so is a token in its last week; one that says goodbye is not."""
    with sessions() as session:
        user = User(username="u", password_hash="x", role="admin")
        session.add(user)
        session.flush()
        session.add(NotificationConfig(user_id=user.id, name="c", type="webhook", address="", secret="", config={}))
        session.add(
            ApiToken(
                user_id=user.id, token_hash="h", name="scraper", role="viewer", expires_at=NOW + timedelta(days=10)
            )
        )
        session.commit()

        def at(minutes: float, *heard: str) -> list[str]:
            now = NOW + timedelta(minutes=minutes)
            for name in heard:
                hear(
                    session,
                    name=name,
                    host=f"host of {name}",
                    version="1",
                    queues=[],
                    slots=1,
                    started_at=NOW,
                    figures={},
                    now=now,
                )
            watch(session, now)
            session.commit()
            rows = list(session.scalars(select(Notification).order_by(Notification.created_at)))
            for row in rows:
                session.delete(row)
            session.commit()
            return [row.type for row in rows]

        assert at(0, "one", "two") == []
        assert at(2, "one") == ["worker silent"]
        assert at(3, "one") == []
        assert at(4, "one", "two") == ["worker back"]
        say_goodbye(session, "two")
        assert at(6, "one") == []
        assert at(4 * 24 * 60, "one") == ["token expiring"]
        assert at(5 * 24 * 60, "one") == []


def test_a_job_that_was_sent_before_maintenance_does_not_begin_in_it(sessions: Sessions) -> None:
    """A worker that gets a job late leaves it: in maintenance of all, and of its host; what only looks at things begins."""
    with sessions() as session:
        jobs = {kind: new_job(kind, {"host": "h"}, title="t", lock_key=kind) for kind in ("backup", "usage")}
        session.add_all(jobs.values())
        session.commit()
        assert len(take_next(session, now=NOW, at_once=10)) == 2
        session.commit()
        for rest in (Preferences(maintenance=True), Preferences(resting=["h"])):
            write_preferences(session, rest)
            session.commit()
            assert claim(session, jobs["backup"].id, "w") is None
        assert claim(session, jobs["usage"].id, "w") is not None
        write_preferences(session, Preferences())
        session.commit()
        assert claim(session, jobs["backup"].id, "w") is not None
