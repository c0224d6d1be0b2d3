"""The recipes for PostgreSQL in docs/podman.md, against a real server in a container that is written to all the time."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab_backup.demo.podman_service import PodmanService
from support.postgres import Postgres, postgres, postgres_image
from support.program import Program
from support.waiting import wait_until

# Row N was committed before row N + 1 looked at the clock, so the rows tell which of them a backup must have.
TABLES = """
CREATE TABLE written (number bigint PRIMARY KEY, amount bigint NOT NULL, at timestamptz NOT NULL);
CREATE PROCEDURE write_for_ever() LANGUAGE plpgsql AS $$
DECLARE n bigint := 0;
BEGIN
    LOOP
        n := n + 1;
        INSERT INTO written VALUES (n, n * n, clock_timestamp());
        COMMIT;
    END LOOP;
END $$;
"""
COMMITTED = "SELECT coalesce(max(number), 0) - 1 FROM written WHERE at <= '{moment}'"
PROGRESS = "SELECT count(*) FROM written UNION ALL SELECT count(*) FROM pgbench_history"
ROWS = "SELECT count(*), max(number), sum(amount) FROM written"
BALANCES = """
SELECT count(DISTINCT total) FROM (
    SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(bbalance) FROM pgbench_branches
    UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(delta) FROM pgbench_history) AS sums (total)
"""


@pytest.fixture(scope="module", autouse=True)
def image(podman_service: PodmanService) -> Iterator[None]:
    """Make the image."""
    with postgres_image(podman_service):
        yield


@contextmanager
def written_to(server: Postgres) -> Iterator[None]:
    """Let three clients write into the server until the end of the block, at which it must be gone."""
    server.sql(TABLES)
    server.sh("pgbench", "-U", "postgres", "-i", "-q", "-s", "1", "postgres")
    commands = (
        ("psql", "-U", "postgres", "-Xqc", "CALL write_for_ever()"),
        ("pgbench", "-U", "postgres", "-n", "-c", "2", "-T", "100", "postgres"),
    )
    ended = []

    def write(command: Sequence[str]) -> None:
        ended.append(server.service.run("exec", server.name, *command, check=False).stderr.decode())

    writers = [threading.Thread(target=write, args=(command,)) for command in commands]
    for writer in writers:
        writer.start()
    try:
        wait_until(lambda: min(map(int, server.sql(PROGRESS))) > 100)
        yield
        assert ended == []
    finally:
        server.remove()
        for writer in writers:
            writer.join(60)


def sound(server: Postgres) -> int:
    """Check that the server has all rows up to a last one, sums that agree and no damage; return the last row's number."""
    count, last, total = (int(field) for field in server.sql(ROWS)[0].split("|"))
    assert (count, total) == (last, last * (last + 1) * (2 * last + 1) // 6)
    assert server.sql(BALANCES) == ["1"]
    checked = ["pg_amcheck", "-U", "postgres", "--all", "--install-missing", "--heapallindexed"]
    assert server.sh(*checked) == ""
    return last


def test_files_with_a_checkpoint(tmp_path: Path, podman_service: PodmanService) -> None:
    """With --pre CHECKPOINT, full and incremental: the server recovers, and has every transaction that was committed before the backup's moment."""
    program = Program(tmp_path, CONTAINER_HOST=podman_service.uri)
    program.ok("repo", "init", tmp_path / "r", "--no-encryption")
    where = ("--repo", tmp_path / "r")
    recipe = ("--pre", "psql -U postgres -c CHECKPOINT")
    with postgres(podman_service) as server:
        with written_to(server):
            made = [program.ok("backup", "container", server.name, *recipe, *where) for _ in range(2)]
            due = [int(server.sql(COMMITTED.format(moment=backup["time"]))[0]) for backup in made]
        assert [(backup["kind"], backup["consistency"]) for backup in made] == [
            ("full", "application"),
            ("incremental", "application"),
        ]
        assert due[1] > due[0] > 100
        for backup, number in zip(made, due, strict=True):
            program.ok("restore", "container", backup["backup"], "--start", *where)
            server.wait_ready()
            assert "redo done" in server.log()
            assert sound(server) >= number
            server.remove()


def test_dump_beside_the_files(tmp_path: Path, podman_service: PodmanService) -> None:
    """With --pre pg_dumpall into a volume and --post to remove it: the dump comes back as a file, and fills a server that is empty."""
    program = Program(tmp_path, CONTAINER_HOST=podman_service.uri)
    program.ok("repo", "init", tmp_path / "r", "--no-encryption")
    where = ("--repo", tmp_path / "r")
    recipe = ("--pre", "pg_dumpall -U postgres > /backup/dump.sql", "--post", "rm /backup/dump.sql")
    with postgres(podman_service) as server, written_to(server):
        before = int(server.sql(ROWS)[0].split("|")[1])
        made = program.ok("backup", "container", server.name, *recipe, *where)
        assert server.sh("ls", "/backup") == ""
        dumps = server.volumes[1]
        program.ok("restore", "files", made["backup"], "dump.sql", "--volume", dumps, "--to", tmp_path / "out", *where)
    with postgres(podman_service) as empty:
        podman_service.run(
            "exec", "-i", empty.name, "psql", "-U", "postgres", "-Xq", data=(tmp_path / "out/dump.sql").read_bytes()
        )
        assert sound(empty) >= before
