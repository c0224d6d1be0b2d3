"""The service as its users meet it: real PostgreSQL, Valkey, Celery and API in one process tree, and a real container that is backed up."""

import hmac
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pyotp
import pytest
from aiosmtpd.controller import Controller
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from lab_backup.demo.podman_service import PodmanService
from lab_backup.service.folders import settings_of
from lab_backup.sources.podman.connection import Podman
from support.podman_box import container
from support.service import NAME, PASSWORD, Service, free_port

PUBLIC = {("get", "/api/v1/setup"), ("post", "/api/v1/setup"), ("post", "/api/v1/auth/login"), ("post", "/api/v1/auth/refresh"), ("get", "/api/v1/health/live"), ("get", "/api/v1/health/ready")}  # fmt: skip
NOTHING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Run the service for all tests of this module."""
    with Service() as running:
        yield running


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    """Return an administrator's access token."""
    return service.sign_in()


def make_user(service: Service, token: str, name: str, role: str) -> str:
    """Make a user and return an access token of theirs."""
    if not any(user["username"] == name for user in service.get("users", token)["items"]):
        service.post("users", {"username": name, "password": PASSWORD, "role": role}, token=token, status=201)
    return service.sign_in(name)


def test_a_container_is_protected_and_comes_back(
    service: Service, token: str, podman_service: PodmanService, tmp_path: Path
) -> None:
    """From an empty service by the API alone: storage, host, schedule, backup with live news, increment, verification, restore under another name, catalog made again."""
    storage = service.post(
        "storage",
        {"name": "disk", "url": str(tmp_path / "repository"), "passphrase": "only for tests"},
        token=token,
        status=201,
    )
    assert storage["encrypted"]
    host = service.post("podman/hosts", {"name": "box", "uri": podman_service.uri}, token=token, status=201)
    with container(podman_service) as box:
        box.sh("echo one > /data/first; head -c 3000000 /dev/urandom > /data/big")
        seen = service.until(
            lambda: service.get(f"podman/hosts/{host['id']}/containers", token),
            lambda found: any(row["name"] == box.name for row in found["items"]),
        )
        source = next(row for row in seen["items"] if row["name"] == box.name)
        assert source["state"] == "running"
        schedule = service.post(
            "schedules",
            {"name": "nightly", "source_type": "container", "source_id": source["id"], "cron_expression": "30 2 * * *", "timezone": "Europe/Berlin", "storage_backend_id": storage["id"], "verify_after": True},
            token=token, status=201,
        )  # fmt: skip
        assert schedule["retention_config"]["weekly"] == 4
        assert len(service.get(f"schedules/{schedule['id']}/preview?count=3", token)["next_runs"]) == 3
        job = service.post(f"schedules/{schedule['id']}/run", token=token, status=202)
        states = news_of(service, job["id"], token)
        assert states[-1] == "succeeded", service.get(f"jobs/{job['id']}", token)
        first = service.get(f"backups?source={box.name}", token)["items"][0]
        assert first["status"] == "complete"
        assert first["backup_type"] == "full"
        checks = service.until(
            lambda: service.get("jobs?type=verify", token)["items"],
            lambda rows: rows and rows[0]["status"] == "succeeded",
        )
        assert checks[0]["result"]["bytes_read"] > 3_000_000
        assert service.get(f"backups/{first['id']}", token)["verified_at"] is not None
        box.sh("echo two > /data/second")
        again = service.post(
            "backups",
            {"source_type": "container", "source_id": source["id"], "storage_backend_id": storage["id"]},
            token=token,
            status=202,
        )
        done = service.job(again["id"], token)
        assert done["result"]["kind"] == "incremental"
        assert done["result"]["bytes_stored"] < 1_000_000
        lines = [line["message"] for line in service.get(f"jobs/{again['id']}/logs?order=oldest", token)["items"]]
        assert lines[-1] == "succeeded"
        newest = service.get(f"backups?source={box.name}", token)["items"][0]
        restore = service.post(
            f"backups/{newest['id']}/restore",
            {"name": "again", "volume_suffix": "-again", "start": True},
            token=token,
            status=202,
        )
        restored = service.job(restore["id"], token)
        try:
            assert restored["status"] in {"succeeded", "succeeded with warnings"}, restored
            assert podman_service.run("exec", "again", "cat", "/data/first", "/data/second").stdout == b"one\ntwo\n"
        finally:
            podman_service.run("rm", "-f", "-t", "0", "again")
        refused = service.ask("POST", f"backups/{newest['id']}/restore", {"overwrite": True}, token=token)
        assert (refused.status_code, box.name in refused.json()["detail"]) == (400, True)
    compare_files(service, token, newest["id"], box.volume)
    look_after(service, token, storage["id"], first["id"], box.name, tmp_path)


def look_after(service: Service, token: str, storage: str, first: str, name: str, folder: Path) -> None:
    """Make the catalog again, protect, delete, undelete and copy backups, and read the figures."""
    gone = service.job(service.post(f"storage/{storage}/rebuild-catalog", token=token, status=202)["id"], token)
    assert gone["result"] == {"backups": 2}
    status = service.get("reports/backup-status", token)
    assert any(row["name"] == name and row["scheduled"] and row["last_backup"] for row in status)
    protected = service.post(f"backups/{first}/protect", token=token, status=202)
    assert service.job(protected["id"], token)["status"] == "succeeded"
    assert service.ask("DELETE", f"backups/{first}", token=token).status_code == 409
    service.job(service.ask("DELETE", f"backups/{first}/protect", token=token).json()["id"], token)
    deletion = service.ask("DELETE", f"backups/{first}", token=token)
    assert deletion.status_code == 202
    service.job(deletion.json()["id"], token)
    assert service.get(f"backups/{first}", token)["status"] == "deleted"
    undone = service.post(f"backups/{first}/undelete", token=token, status=202)
    assert service.job(undone["id"], token)["status"] == "succeeded"
    assert service.get(f"backups/{first}", token)["status"] == "complete"
    copy = service.post("storage", {"name": "copy", "url": str(folder / "copy"), "passphrase": "another"}, token=token, status=201)  # fmt: skip
    copied = service.post(f"storage/{storage}/replicate", {"to": copy["id"]}, token=token, status=202)
    assert service.job(copied["id"], token)["result"] == {"copied": 2}
    assert len(service.get(f"backups?storage={copy['id']}", token)["items"]) == 2
    text = httpx.get(f"http://127.0.0.1:{service.port}/metrics", headers={"Authorization": f"Bearer {token}"}).text
    assert "lab_backup_backups 4.0" in text
    assert f'lab_backup_last_success_timestamp_seconds{{source="{name}",source_type="container"}}' in text
    assert httpx.get(f"http://127.0.0.1:{service.port}/metrics").status_code == 401
    figures = service.get("metrics", token)
    assert figures["backups"]["count"] == 4
    assert figures["storages"][0]["used"] > 0


def compare_files(service: Service, token: str, backup: str, volume: str) -> None:
    """Look into a backup and download from it: a file as it is, and a folder as an archive."""
    place = f"backups/{backup}/files"
    listed = service.ask("GET", place, token=token, params={"volume": volume}).json()
    assert {"first", "second", "big"} <= {item["path"] for item in listed}
    one = service.ask("GET", f"{place}/download", token=token, params={"volume": volume, "path": "first"})
    assert (one.status_code, one.content, one.headers["content-length"]) == (200, b"one\n", "4")
    assert "first" in one.headers["content-disposition"]
    answer = service.ask("GET", f"{place}/download", token=token, params={"volume": volume, "path": ""})
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert {"first", "second", "big"} <= set(archive.getnames())
        second = archive.extractfile("second")
        assert second is not None
        assert (second.read(), archive.getmember("big").size) == (b"two\n", 3_000_000)
    missing = service.ask("GET", f"{place}/download", token=token, params={"volume": volume, "path": "../etc/passwd"})
    assert missing.status_code == 404


def test_a_killed_worker_and_a_cancelled_job_leave_nothing_behind(
    service: Service, token: str, podman_service: PodmanService, tmp_path: Path
) -> None:
    """Every process of the worker killed with -9 in the middle of a backup: interrupted within a minute, done once more, complete. A cancelled one ends in seconds. The container runs on."""
    storage = service.post("storage", {"name": "big", "url": str(tmp_path / "big"), "passphrase": None}, token=token, status=201)  # fmt: skip
    host = service.post("podman/hosts", {"name": "killed", "uri": podman_service.uri}, token=token, status=201)
    with container(podman_service) as box, Podman(podman_service.uri) as podman:
        box.sh("for i in 1 2 3 4 5 6; do head -c 200000000 /dev/urandom > /data/$i; done")
        containers = service.until(
            lambda: service.get(f"podman/hosts/{host['id']}/containers", token)["items"],
            lambda rows: any(row["name"] == box.name for row in rows),
        )
        source = next(row["id"] for row in containers if row["name"] == box.name)
        wanted = {"source_type": "container", "source_id": source, "storage_backend_id": storage["id"]}

        def under_way() -> str:
            job: str = service.post("backups", wanted, token=token, status=202)["id"]
            service.until(
                lambda: service.get(f"jobs/{job}", token)["progress"],
                lambda seen: seen.get("phase", "").endswith("while it runs"),
            )
            return job

        cancelled = under_way()
        assert service.ask("POST", f"jobs/{cancelled}/cancel", token=token).status_code == 202
        assert service.job(cancelled, token, seconds=15)["status"] == "cancelled"
        assert box.state(podman) == "running"
        killed = under_way()
        assert service.process is not None
        kill_worker(service.process.pid)
        ended = service.job(killed, token, seconds=60)
        assert (ended["status"], ended["attempt"]) == ("interrupted", 1)
        again = service.until(
            lambda: [job for job in service.get("jobs?type=backup", token)["items"] if job["retry_of"] == killed], bool
        )
        done = service.job(again[0]["id"], token)
        assert done["status"] in {"succeeded", "succeeded with warnings"}, done
        assert done["result"]["backup"] == done["metadata"]["backup_id"] == ended["metadata"]["backup_id"]
        assert box.state(podman) == "running"
    assert len(service.get(f"backups?storage={storage['id']}", token)["items"]) == 1


def kill_worker(root: int) -> None:
    """Kill the worker below the process `root` of a service, and all that it has started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    worker = next(pid for pid in children[root] if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    doomed = [worker]
    for pid in doomed:
        doomed += children.get(pid, [])
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def news_of(service: Service, job: str, token: str) -> list[str]:
    """Return the states of a job that the WebSocket tells, until it has ended."""
    with connect(f"{service.url.replace('http', 'ws', 1)}/ws/jobs/{job}") as socket:
        socket.send(json.dumps({"token": token}))
        return [json.loads(message)["status"] for message in socket]


def test_news_need_a_token_that_is_not_in_the_address(service: Service) -> None:
    """Without a valid token as the first message the socket is closed, and tells nothing."""
    with connect(f"{service.url.replace('http', 'ws', 1)}/ws/jobs") as socket:
        socket.send(json.dumps({"token": "made up"}))
        with pytest.raises(ConnectionClosedError):
            socket.recv(timeout=20)
        assert socket.close_code == 4401


def test_each_role_reaches_what_it_may_and_nothing_else(service: Service, token: str) -> None:
    """Every endpoint of the OpenAPI document, asked by nobody, viewer and operator: 401 and 403 where the table says so, and never a fault."""
    document = service.ask("GET", "openapi.json").json()
    viewer, operator = make_user(service, token, "vera", "viewer"), make_user(service, token, "otto", "operator")
    found: dict[str, set[str]] = {"viewer": set(), "operator": set(), "admin": set()}
    for path, methods in document["paths"].items():
        for method in methods:
            if (method, path) in PUBLIC or path.endswith("/auth/logout") or path == "/metrics":
                continue
            place = path.removeprefix("/api/v1/")
            for name in (
                "host_id",
                "vm_id",
                "storage_id",
                "schedule_id",
                "backup_id",
                "job_id",
                "user_id",
                "token_id",
                "session_id",
            ):
                place = place.replace(f"{{{name}}}", NOTHING)
            body: dict[str, str] | None = {} if method in {"post", "put"} else None
            assert service.ask(method, place, body).status_code == 401, (method, path)
            answers = {
                role: service.ask(method, place, body, token=held).status_code
                for role, held in (("viewer", viewer), ("operator", operator))
            }
            assert set(answers.values()) <= {200, 202, 204, 400, 403, 404, 409, 422}, (method, path, answers)
            least = next((role for role, answer in answers.items() if answer != 403), "admin")
            found[least].add(f"{method} {place.replace(NOTHING, '*')}")
    assert found["operator"] == {
        "post schedules", "put schedules/*", "delete schedules/*", "post schedules/*/run", "post backups", "delete backups/*",
        "post backups/*/protect", "delete backups/*/protect", "post backups/*/undelete", "get backups/*/files", "get backups/*/files/download",
        "post backups/*/verify", "post backups/*/restore", "post jobs/*/cancel", "post jobs/*/retry", "post storage/*/verify",
        "get backups/*/compare/{other_id}", "post backups/*/archive", "delete backups/*/archive", "get backups/*/download",
        "put sources/{source_type}/{source_id}/tags",
    }  # fmt: skip
    assert found["admin"] == {
        "get users", "post users", "get users/*", "put users/*", "delete users/*", "get audit", "post kvm/hosts", "put kvm/hosts/*", "delete kvm/hosts/*",
        "post kvm/hosts/*/test", "post podman/hosts", "put podman/hosts/*", "delete podman/hosts/*", "post podman/hosts/*/test", "post storage",
        "put storage/*", "delete storage/*", "post storage/*/gc", "post storage/*/rebuild-catalog", "post storage/*/recovery-sheet", "post storage/*/replicate",
        "post storage/test", "post storage/*/test", "get storage/*/keys", "post storage/*/keys", "delete storage/*/keys/{key_id}",
        "put settings", "put maintenance", "put maintenance/*", "get config", "put config", "get users/*/export",
    }  # fmt: skip


def test_a_refresh_token_is_good_once_and_a_second_use_ends_the_session(service: Service) -> None:
    """Rotation with reuse detection: whoever stole the old token ends the session for both, and its access token is refused too."""
    first = service.post("auth/login", {"username": NAME, "password": PASSWORD}, status=200)
    second = service.post("auth/refresh", {"refresh_token": first["refresh_token"]}, status=200)
    assert service.get("me", second["access_token"])["username"] == NAME
    service.post("auth/refresh", {"refresh_token": first["refresh_token"]}, status=401)
    service.post("auth/refresh", {"refresh_token": second["refresh_token"]}, status=401)
    assert service.ask("GET", "me", token=second["access_token"]).status_code == 401


def test_an_account_is_locked_after_wrong_passwords_and_opened_by_a_local_command(service: Service, token: str) -> None:
    """Five wrong passwords lock it even for the right one; `reset-password` on the machine lets its owner in again."""
    make_user(service, token, "lotta", "viewer")
    for _ in range(5):
        service.post("auth/login", {"username": "lotta", "password": "a guess"}, status=401)
    service.post("auth/login", {"username": "lotta", "password": PASSWORD}, status=401)
    program = service.folder / "new"
    program.write_text("seven orange bicycles whistle\n")
    assert run_program(service, "reset-password", "lotta", "--password-file", str(program)) == 0
    assert service.sign_in("lotta", "seven orange bicycles whistle")


def run_program(service: Service, *arguments: str) -> int:
    """Run a command beside the service and return its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "lab_backup", *arguments, "--data-dir", str(service.data)], timeout=60, check=False
    ).returncode


def test_a_second_factor_is_asked_for_and_each_code_is_good_once(service: Service, token: str) -> None:
    """Once confirmed, the password alone does not do, nor does a code that was used."""
    own = make_user(service, token, "tom", "viewer")
    secret = service.post("me/totp", token=own, status=200)["secret"]
    service.post("me/totp/verify", {"code": "000000"}, token=own, status=400)
    sign_in = {"username": "tom", "password": PASSWORD}
    service.post("auth/login", sign_in, status=200)
    service.post("me/totp/verify", {"code": pyotp.TOTP(secret).now()}, token=own, status=204)
    service.post("auth/login", sign_in, status=401)
    service.post("auth/login", {**sign_in, "code": pyotp.TOTP(secret).now()}, status=401)
    later = pyotp.TOTP(secret).at(int(time.time()) + 30)
    assert service.post("auth/login", {**sign_in, "code": later}, status=200)["access_token"]
    service.post("auth/login", {**sign_in, "code": later}, status=401)


class Receiver(BaseHTTPRequestHandler):
    """Keeps what webhooks send."""

    got: ClassVar[list[tuple[dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        """Keep a message."""
        self.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Mailbox:
    """Keeps mails."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802
        """Keep a mail."""
        self.mails.append(envelope.content.decode())
        return "250 OK"


def told_of(job: str) -> list[Any]:
    """Return the messages about a job that came to the webhook."""
    return [(headers, sent) for headers, sent in Receiver.got if job in json.loads(sent)["text"]]


def test_who_wants_to_know_is_told_of_a_failure_and_of_its_end(service: Service, token: str, tmp_path: Path) -> None:
    """A verification that fails and then succeeds: signed webhooks and mails about both, an inbox; without `trusted` nothing goes to this machine."""
    mailbox = Mailbox()
    mail = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    mail.start()
    try:
        hook = f"http://127.0.0.1:{server.server_address[1]}/hook"
        body = {"name": "hook", "type": "webhook", "address": hook, "secret": "shared"}
        refused = service.post("notifications/channels", body, token=token, status=201)
        assert not service.post(f"notifications/channels/{refused['id']}/test", token=token, status=200)["ok"]
        service.ask("DELETE", f"notifications/channels/{refused['id']}", token=token)
        service.post("notifications/channels", {**body, "trusted": True}, token=token, status=201)
        address = f"mailto://127.0.0.1:{mail.port}?from=lab@example.org&to=ada@example.org"
        made = service.post("notifications/channels", {"name": "mail", "type": "apprise", "address": address}, token=token, status=201)  # fmt: skip
        assert "address" not in made
        assert service.post(f"notifications/channels/{made['id']}/test", token=token, status=200)["ok"]
        service.post("notifications/channels", {**body, "type": "apprise", "address": "file:///etc"}, token=token, status=400)  # fmt: skip
        storage = service.post("storage", {"name": "lost", "url": str(tmp_path / "lost"), "passphrase": None}, token=token, status=201)  # fmt: skip
        # Its space is asked for in the background, which would fail as well, and be told.
        service.until(lambda: service.get(f"storage/{storage['id']}/usage", token)["seen_at"], bool)
        (tmp_path / "lost").rename(tmp_path / "away")
        failed = service.post(f"storage/{storage['id']}/verify", token=token, status=202)
        assert service.job(failed["id"], token)["status"] == "failed"
        headers, sent = service.until(lambda: told_of(failed["id"]), bool)[0]
        assert json.loads(sent)["severity"] == "error"
        signed = hmac.new(b"shared", headers["X-Lab-Backup-Timestamp"].encode() + b"." + sent, "sha256").hexdigest()
        assert headers["X-Lab-Backup-Signature"] == f"sha256={signed}"
        (tmp_path / "away").rename(tmp_path / "lost")
        again = service.post(f"storage/{storage['id']}/verify", token=token, status=202)["id"]
        assert service.job(again, token)["status"] == "succeeded"
        service.until(lambda: told_of(again), bool)
        service.until(lambda: mailbox.mails, lambda mails: len(mails) >= 3)
        inbox = service.get("notifications", token)["items"]
        assert sorted(row["type"] for row in inbox if row["type"].startswith("verify ")) == [
            "verify failed", "verify failed", "verify succeeded", "verify succeeded",
        ]  # fmt: skip
        service.post(f"notifications/{inbox[0]['id']}/read", token=token, status=204)
    finally:
        mail.stop()
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_api_token_has_its_own_role_and_can_be_taken_back(service: Service, token: str) -> None:
    """A viewer's token of an administrator may read and nothing else; deleted, it is refused at once."""
    made = service.post("tokens", {"name": "grafana", "role": "viewer"}, token=token, status=201)
    assert service.get("jobs", made["token"])["items"] is not None
    assert service.ask("GET", "users", token=made["token"]).status_code == 403
    service.ask("DELETE", f"tokens/{made['id']}", token=token)
    assert service.ask("GET", "jobs", token=made["token"]).status_code == 401


def test_what_was_done_is_written_down_and_a_forged_entry_is_found(service: Service, token: str) -> None:
    """The log's chain is sound, the database refuses to change a row, and one that is changed past that is found by the command."""
    assert {"login", "created"} <= {entry["action"] for entry in service.get("audit?limit=200", token)["items"]}
    assert run_program(service, "verify-audit") == 0
    engine = create_engine(settings_of(service.data).database_url)
    try:
        with engine.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
            connection.execute(text("update audit_logs set action = 'nothing' where id = 2"))
        with engine.begin() as connection:
            connection.execute(text("alter table audit_logs disable trigger append_only"))
            before = connection.scalar(text("select action from audit_logs where id = 2"))
            connection.execute(text("update audit_logs set action = 'nothing' where id = 2"))
        assert run_program(service, "verify-audit") == 6
        with engine.begin() as connection:
            connection.execute(text("update audit_logs set action = :before where id = 2"), {"before": before})
            connection.execute(text("alter table audit_logs enable trigger append_only"))
        assert run_program(service, "verify-audit") == 0
    finally:
        engine.dispose()


def test_bad_requests_are_told_what_is_wrong_and_secrets_stay_out(service: Service, token: str) -> None:
    """Problem details with the field and without its value; a passphrase is never shown again."""
    answer = service.ask("POST", "storage", {"name": "x", "url": "/srv/x", "passphrase": ["hidden words"]}, token=token)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "body.passphrase"
    assert "hidden words" not in answer.text
    assert (
        service.ask("POST", "storage", {"name": "x", "url": "relative", "passphrase": None}, token=token).status_code
        == 400
    )
    assert service.ask("GET", "jobs?cursor=nonsense", token=token).status_code == 400
    assert service.ask("GET", f"jobs/{NOTHING}", token=token).status_code == 404
    assert service.ask("GET", "backups?source=%00", token=token).status_code == 422
    assert service.ask("POST", "auth/login", {"username": "x", "password": "y" * 2_000_000}).status_code == 413


def test_more_requests_than_allowed_are_refused_with_the_time_to_wait(service: Service) -> None:
    """Twenty tries to sign in a minute from one address; the next one is told when to come back. Runs last: it uses them up."""
    answers = [service.ask("POST", "auth/login", {"username": "nobody", "password": "x"}) for _ in range(25)]
    assert answers[-1].status_code == 429
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60


def test_a_service_that_was_killed_goes_on_where_it_was() -> None:
    """SIGKILL of the whole tree's root: all its processes end, and the next start has its users, jobs and keys."""
    with Service() as service:
        token = service.sign_in()
        made = service.post(
            "storage", {"name": "kept", "url": str(service.folder / "r"), "passphrase": "p"}, token=token, status=201
        )
        service.stop(signal.SIGKILL)
        service.start()
        assert service.setup is None
        token = service.sign_in()
        job = service.post(f"storage/{made['id']}/verify", token=token, status=202)
        assert service.job(job["id"], token)["status"] == "succeeded"
        began = time.monotonic()
        assert service.stop(signal.SIGINT) == 130
        assert time.monotonic() - began < 60
        assert not processes_below(service.data)


def processes_below(folder: Path) -> list[Any]:
    """Return the command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return [text for text in found if os.fsencode(folder) in text]
