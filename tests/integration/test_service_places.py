"""The service with more than one container: pods, volumes, tags and whole hosts, a bucket with credentials of its own, keys, maintenance and workers."""

import io
import json
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx
import pytest
import yaml
from websockets.sync.client import connect

from lab_backup import __version__
from lab_backup.demo.podman_service import IMAGE, PodmanService
from support.podman_box import IDLE, container
from support.seaweed import ADMIN, Seaweed
from support.service import PASSWORD, Service

NOTHING = "00000000-0000-4000-8000-000000000000"


class Hook:
    """A server that answers everything with 204, and notes what it was asked for."""

    def __enter__(self) -> Self:
        """Listen."""
        asked: list[str] = []
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.send_response(204)
                self.end_headers()

            do_POST = do_GET  # noqa: N815  the name that the server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Run the service for all tests of this module."""
    with Service() as running:
        yield running


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    """Return an administrator's access token."""
    return service.sign_in()


@pytest.fixture(scope="module")
def disk(service: Service, token: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a storage on the local disk."""
    body = {"name": "disk", "url": str(tmp_path_factory.mktemp("disk") / "repository"), "passphrase": "only for tests"}
    return service.post("storage", body, token=token, status=201)


@pytest.fixture(scope="module")
def host(service: Service, token: str, podman_service: PodmanService) -> Any:
    """Return the Podman host."""
    return service.post("podman/hosts", {"name": "box", "uri": podman_service.uri}, token=token, status=201)


def found(service: Service, token: str, host: str, what: str, name: str) -> Any:
    """Return the row of something on the host, looked at anew."""
    service.ask("PUT", f"podman/hosts/{host}", {"enabled": True}, token=token)
    rows = service.until(
        lambda: service.get(f"podman/hosts/{host}/{what}", token)["items"],
        lambda rows: any(row["name"] == name for row in rows),
    )
    return next(row for row in rows if row["name"] == name)


def ended_well(service: Service, token: str, job: str) -> Any:
    """Return a job that succeeded."""
    done = service.job(job, token)
    assert done["status"] in {"succeeded", "succeeded with warnings"}, done
    return done


def enough(wanted: int) -> Callable[[Any], bool]:
    """Return whether so many jobs besides those that only queue others have succeeded."""
    return lambda rows: sum(row["status"] == "succeeded" and row["type"] != "schedule" for row in rows) == wanted


def test_pods_and_volumes_are_backed_up_by_tag_and_come_back(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """A tag chooses a pod and a volume; one run backs both up, and verifies them; both come back under new names."""
    pod = f"p-{uuid.uuid4().hex[:8]}"
    with container(podman_service) as box:
        podman_service.run("pod", "create", "--name", pod, "--infra=false")
        try:
            podman_service.run("run", "-d", "--pod", pod, "--name", f"{pod}-one", IMAGE, *IDLE)
            box.sh("echo kept > /data/file")
            made = found(service, token, host["id"], "pods", pod)
            assert made["containers"] == 1
            inside = found(service, token, host["id"], "containers", f"{pod}-one")
            assert inside["pod"] == pod
            volume = found(service, token, host["id"], "volumes", box.volume)
            for kind, row in (("pod", made), ("volume", volume)):
                answer = service.ask("PUT", f"sources/{kind}/{row['id']}/tags", {"tags": ["gold"]}, token=token)
                assert answer.status_code == 200, answer.text
            assert {row["source_type"] for row in service.get("sources/tags", token)} == {"pod", "volume"}
            schedule = service.post(
                "schedules",
                {"name": "gold", "source_type": "tag", "source_tag": "gold", "cron_expression": "0 3 * * *", "storage_backend_id": disk["id"], "verify_after": True, "retention_config": {"last": 1, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}},
                token=token, status=201,
            )  # fmt: skip
            for count in (1, 2):
                job = service.post(f"schedules/{schedule['id']}/run", token=token, status=202)
                assert ended_well(service, token, job["id"])["result"] == {"sources": 2}
                rows = service.until(
                    lambda: service.get(f"jobs?schedule={schedule['id']}&limit=100", token)["items"],
                    enough(4 * count),
                )
                assert {row["type"] for row in rows} == {"schedule", "backup", "verify"}
            preview = service.get(f"schedules/{schedule['id']}/preview", token)
            assert preview["sources"] == [f"pod/{pod}", f"volume/{box.volume}"]
            assert sorted(row["kept"] for row in preview["retention"]) == [False, False, True, True]
            status = {(row["source_type"], row["name"]): row for row in service.get("reports/backup-status", token)}
            assert status["pod", pod]["scheduled"]
            assert status["volume", box.volume]["last_verified"]
            backups = service.get("backups?limit=100", token)["items"]
            kept = next(row for row in backups if row["source_name"] == box.volume)
            restore = service.post(
                f"backups/{kept['id']}/restore", {"name": f"{box.volume}-2"}, token=token, status=202
            )
            ended_well(service, token, restore["id"])
            look = podman_service.run("run", "--rm", "-v", f"{box.volume}-2:/x", IMAGE, "cat", "/x/file")
            assert look.stdout == b"kept\n"
            whole = next(row for row in backups if row["source_name"] == pod)
            restore = service.post(f"backups/{whole['id']}/restore", {"name": f"{pod}-2", "start": True, "volume_suffix": "-2"}, token=token, status=202)  # fmt: skip
            ended_well(service, token, restore["id"])
            assert f"{pod}-2".encode() in podman_service.run("pod", "ps", "--format", "{{.Name}} {{.Status}}").stdout
        finally:
            for name in (pod, f"{pod}-2"):
                podman_service.run("pod", "rm", "-f", "-t", "0", name, check=False)
            podman_service.run("volume", "rm", "-f", f"{box.volume}-2", check=False)


def test_all_of_a_host_is_backed_up_and_what_is_new_too(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """A schedule of a host backs up what is there when it runs."""
    body = {
        "name": "all of box", "source_type": "podman_host", "source_id": host["id"], "cron_expression": "0 4 * * *",
        "storage_backend_id": disk["id"], "jitter_seconds": 60,
    }  # fmt: skip
    schedule = service.post("schedules", body, token=token, status=201)
    with container(podman_service) as box:
        found(service, token, host["id"], "containers", box.name)
        assert f"container/{box.name}" in service.get(f"schedules/{schedule['id']}/preview", token)["sources"]
        job = service.post(f"schedules/{schedule['id']}/run", token=token, status=202)
        ended_well(service, token, job["id"])
        service.until(lambda: service.get(f"backups?source={box.name}", token)["items"], bool)
        row = next(row for row in service.get("reports/backup-status", token) if row["name"] == box.name)
        assert row["scheduled"]
    for wrong in (
        {"source_type": "tag"}, {"source_type": "all"}, {"source_type": "container", "source_tag": "x"},
        {"replicate_to": disk["id"]},
    ):  # fmt: skip
        answer = service.ask("POST", "schedules", {**body, "name": "wrong", **wrong}, token=token)
        assert answer.status_code == 400, (wrong, answer.text)


def test_a_bucket_is_opened_with_credentials_of_its_own(
    service: Service, token: str, podman_service: PodmanService, host: Any, disk: Any, seaweed: Seaweed
) -> None:
    """Credentials are tried, sealed, never shown, and can be replaced; a chain copies each backup there; keys are listed, added and taken away."""
    bucket, prefix = seaweed.place()
    good = {"access_key": ADMIN.access_key, "secret_key": ADMIN.secret_key}
    body = {
        "name": "bucket",
        "url": f"s3://{bucket}/{prefix}?endpoint={seaweed.endpoint}",
        "passphrase": "for tests too",
    }
    wrong = service.post(
        "storage/test", {**body, "credentials": {**good, "secret_key": "x" * 40}}, token=token, status=200
    )
    assert (wrong["ok"], wrong["checks"][0]["outcome"]) == (False, "failed")
    assert service.ask("POST", "storage", {**body, "credentials": {"password": "x"}}, token=token).status_code == 400
    tried = service.post("storage/test", {**body, "credentials": good}, token=token, status=200)
    assert tried["ok"], tried
    bucket_row = service.post("storage", {**body, "credentials": good}, token=token, status=201)
    assert bucket_row["has_credentials"]
    assert ADMIN.secret_key not in json.dumps(service.get("storage", token))
    assert service.post(f"storage/{bucket_row['id']}/test", token=token, status=200)["ok"]
    refused = service.ask(
        "PUT", f"storage/{bucket_row['id']}", {"credentials": {**good, "secret_key": "y" * 40}}, token=token
    )
    assert refused.status_code in {403, 409, 502, 503}, refused.text
    keys = service.get(f"storage/{bucket_row['id']}/keys", token)
    assert len(keys) == 1
    second = service.post(
        f"storage/{bucket_row['id']}/keys", {"passphrase": "another one", "label": "spare"}, token=token, status=201
    )
    assert service.ask("DELETE", f"storage/{bucket_row['id']}/keys/{second['id']}", token=token).status_code == 204
    assert service.ask("DELETE", f"storage/{bucket_row['id']}/keys/{keys[0]['id']}", token=token).status_code == 400
    with container(podman_service) as box:
        row = found(service, token, host["id"], "containers", box.name)
        schedule = service.post(
            "schedules",
            {"name": "copied", "source_type": "container", "source_id": row["id"], "cron_expression": "0 5 * * *", "storage_backend_id": disk["id"], "replicate_to": bucket_row["id"]},
            token=token, status=201,
        )  # fmt: skip
        service.post(f"schedules/{schedule['id']}/run", token=token, status=202)
        copies = service.until(
            lambda: service.get(f"backups?source={box.name}&storage={bucket_row['id']}", token)["items"], bool
        )
        assert copies[0]["source_name"] == box.name
    held = service.data.rglob("*")
    secret = ADMIN.secret_key.encode()
    assert not any(secret in path.read_bytes() for path in held if path.is_file() and not path.is_symlink())


def test_what_was_found_by_attacking_stays_mended(service: Service, token: str, disk: Any) -> None:
    """An operator cannot repeat what only administrators begin; tokens do not make tokens; answers are kept for valid tokens alone; inner addresses stay out of reach."""
    service.post("users", {"username": "otto", "password": PASSWORD, "role": "operator"}, token=token, status=201)
    operator = service.sign_in("otto")
    job = service.post(f"storage/{disk['id']}/gc", token=token, status=202)
    service.job(job["id"], token)
    assert service.ask("POST", f"jobs/{job['id']}/retry", token=operator).status_code == 403
    body = {
        "name": "leak",
        "source_type": "all",
        "cron_expression": "0 5 * * *",
        "storage_backend_id": disk["id"],
        "replicate_to": NOTHING,
    }
    assert service.ask("POST", "schedules", body, token=operator).status_code in {403, 404}
    made = service.post("tokens", {"name": "script", "role": "viewer"}, token=token, status=201)
    assert service.ask("POST", "tokens", {"name": "more", "role": "viewer"}, token=made["token"]).status_code == 403
    me = service.get("me", token)["id"]
    assert service.ask("PUT", f"users/{me}", {"password": PASSWORD + "2"}, token=token).status_code == 400
    header = {"Idempotency-Key": "one", "Authorization": "Bearer labb_none"}
    for _ in range(2):
        answer = httpx.post(f"{service.url}/auth/login", json={}, headers=header, timeout=20)
        assert "Idempotent-Replayed" not in answer.headers
    hook = {"name": "inner", "type": "webhook", "address": f"http://[::ffff:127.0.0.1]:{service.port}/"}
    channel = service.post("notifications/channels", hook, token=operator, status=201)
    tried = service.post(f"notifications/channels/{channel['id']}/test", token=operator, status=200)
    assert (tried["ok"], "this machine" in tried["detail"]) == (False, True)
    assert service.get("settings", operator)["heartbeat_url"] is None


def test_maintenance_lets_nothing_begin(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """In maintenance, of all or of one host, jobs wait; afterwards they run."""
    with container(podman_service) as box:
        row = found(service, token, host["id"], "containers", box.name)
        wanted = {"source_type": "container", "source_id": row["id"], "storage_backend_id": disk["id"]}
        for place in ("maintenance", f"maintenance/{host['id']}"):
            assert service.ask("PUT", place, {"on": True, "reason": "new disks"}, token=token).status_code == 200
            waiting = service.post("backups", wanted, token=token, status=202)
            # What goes on in maintenance is begun after it, so the beat has looked at the queue meanwhile.
            service.ask("PUT", f"podman/hosts/{host['id']}", {"enabled": True}, token=token)
            service.until(
                lambda: service.get("jobs?type=inventory&limit=1", token)["items"],
                lambda rows: rows and rows[0]["status"] == "succeeded",
            )
            assert service.get(f"jobs/{waiting['id']}", token)["status"] == "queued"
            assert service.ask("PUT", place, {"on": False}, token=token).status_code == 200
            ended_well(service, token, waiting["id"])


def test_workers_and_settings_are_shown(service: Service, token: str) -> None:
    """The worker says what it is and what its host is at; settings change in part and are checked."""
    workers = service.until(lambda: service.get("workers", token), bool)
    assert (workers[0]["version"], workers[0]["alive"], workers[0]["same_version"]) == (__version__, True, True)
    assert workers[0]["figures"]["memory_total"] > 0
    assert workers[0]["queues"] == ["default"]
    changed = service.ask("PUT", "settings", {"keep_logs_days": 30}, token=token).json()
    assert (changed["keep_logs_days"], changed["jobs_at_once"]) == (30, 16)
    assert service.ask("PUT", "settings", {"jobs_at_once": 0}, token=token).status_code == 422
    assert service.ask("PUT", "settings", {"heartbeat_url": "ftp://x"}, token=token).status_code == 422


def test_two_backups_are_compared_kept_and_downloaded(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """Two backups of a container: what differs, in which order they are listed, one kept for good, one downloaded whole; a repeated request is done once."""
    with container(podman_service) as box:
        row = found(service, token, host["id"], "containers", box.name)
        wanted = {"source_type": "container", "source_id": row["id"], "storage_backend_id": disk["id"]}
        box.sh("echo one > /data/stays; echo old > /data/changes; echo x > /data/goes")
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "first of two"}
        answers = [httpx.post(f"{service.url}/backups", json=wanted, headers=headers, timeout=60) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert answers[1].headers["Idempotent-Replayed"] == "true"
        other = httpx.post(f"{service.url}/backups", json={**wanted, "full": True}, headers=headers, timeout=60)
        assert other.status_code == 422
        ended_well(service, token, answers[0].json()["id"])
        box.sh(
            "echo newer > /data/changes; rm /data/goes; head -c 70000 /dev/urandom > /data/comes; ln /data/comes /data/twice"
        )
        ended_well(service, token, service.post("backups", wanted, token=token, status=202)["id"])
    listed = service.get(f"backups?source={box.name}&sort=completed_at&order=oldest", token)["items"]
    assert len(listed) == 2, "the repeated request made no backup of its own"
    first, second = (backup["id"] for backup in listed)
    page = service.get("backups?sort=source_name&order=oldest&limit=1", token)
    names = [page["items"][0]["source_name"]]
    while page["next"]:
        page = service.get(f"backups?sort=source_name&order=oldest&limit=1&cursor={page['next']}", token)
        names.append(page["items"][0]["source_name"])
    assert names == sorted(names)
    assert len(names) == len(service.get("backups?limit=500", token)["items"])
    compared = service.get(f"backups/{first}/compare/{second}", token)
    tree = next(tree for tree in compared["trees"] if box.volume in tree["name"])
    assert {(file["path"], file["change"]) for file in tree["files"]} == {
        ("changes", "changed"), ("goes", "removed"), ("comes", "added"), ("twice", "added"),
    }  # fmt: skip
    assert next(file["size_after"] for file in tree["files"] if file["path"] == "comes") == 70000
    kept = service.post(f"backups/{first}/archive", token=token, status=202)
    ended_well(service, token, kept["id"])
    assert [backup["id"] for backup in service.get("backups?tag=archive", token)["items"]] == [first]
    refused = service.ask("DELETE", f"backups/{first}", token=token)
    assert service.job(refused.json()["id"], token)["status"] == "failed"
    service.job(service.ask("DELETE", f"backups/{first}/archive", token=token).json()["id"], token)
    assert service.get("backups?tag=archive", token)["items"] == []
    answer = service.ask("GET", f"backups/{second}/download", token=token)
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        members = {member.name: member for member in archive}
        assert json.loads(archive.extractfile(members["manifest.json"]).read())["source"]["name"] == box.name  # type: ignore[union-attr]
        inside = {name.partition("/")[2]: name for name in members if name.startswith(tree["name"] + "/")}
        assert archive.extractfile(members[inside["changes"]]).read() == b"newer\n"  # type: ignore[union-attr]
        assert members[inside["twice"]].linkname == inside["comes"]


def test_the_inbox_tells_as_it_fills(service: Service, token: str, disk: Any) -> None:
    """Who listens hears of a failed job within seconds; a watcher outside hears that the service lives; what is old is forgotten."""
    with Hook() as hook:
        channel = {"name": "hook", "type": "webhook", "address": hook.url, "least": "info", "trusted": True}
        service.post("notifications/channels", channel, token=token, status=201)
        address = f"{service.url.replace('http', 'ws', 1)}/ws/notifications"
        with connect(address, open_timeout=20) as socket:
            socket.send(json.dumps({"token": token}))
            time.sleep(1)  # the service says nothing when it has begun to listen
            service.post(f"storage/{disk['id']}/verify", token=token, status=202)
            told = {}
            while "subject" not in told:
                told = json.loads(socket.recv(timeout=60))
            assert told["subject"].startswith("verify disk")
        assert service.ask("PUT", "settings", {"heartbeat_url": hook.url + "alive"}, token=token).status_code == 200
        service.until(lambda: hook.asked, lambda asked: "/alive" in asked, 90)
    done = service.until(
        lambda: service.get("jobs?type=housekeeping", token)["items"],
        lambda rows: rows and rows[0]["status"] == "succeeded",
    )
    assert set(done[0]["result"]) == {"job_logs", "jobs", "notifications", "sessions"}


def test_reports_come_as_tables_and_pages(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """Every report is JSON, CSV and a PDF; compliance says of each source what an auditor asks; logs carry the job."""
    with container(podman_service) as box:
        row = found(service, token, host["id"], "containers", box.name)
        wanted = {"source_type": "container", "source_id": row["id"], "storage_backend_id": disk["id"]}
        ended_well(service, token, service.post("backups", wanted, token=token, status=202)["id"])
        for name in ("backup-status", "compliance", "storage-usage", "job-history"):
            rows = service.get(f"reports/{name}", token)
            table = service.ask("GET", f"reports/{name}?format=csv", token=token)
            assert len(table.text.splitlines()) == len(rows) + 1
            page = service.ask("GET", f"reports/{name}?format=pdf", token=token)
            assert page.headers["content-type"] == "application/pdf"
            assert page.content.startswith(b"%PDF-")
        source = next(row for row in service.get("reports/compliance", token) if row["name"] == box.name)
        assert (source["copies"], source["encrypted"], source["days_without"]) == (1, True, 29)
        assert source["kept"] == source["scheduled"]
    figures = service.get("metrics", token)
    assert figures["workers"][0]["figures"]["processors"] > 0
    assert any(row["type"] == "backup" and row["seconds"] > 0 for row in figures["durations"])
    told = service.ask("GET", "../../metrics", token=token).text
    assert 'lab_backup_job_seconds_mean{type="backup"}' in told
    log = next(iter(service.data.glob("log/worker.log"))).read_text().splitlines()
    assert any(json.loads(line).get("job") for line in log if line.startswith("{"))


def test_the_configuration_is_a_file_that_makes_it_so(
    service: Service, token: str, podman_service: PodmanService, disk: Any, host: Any
) -> None:
    """An export applied again changes nothing; an edited one changes what it says and removes schedules that it leaves out; what it cannot mean is refused whole."""
    with container(podman_service) as box:
        row = found(service, token, host["id"], "containers", box.name)
        service.ask("PUT", f"sources/container/{row['id']}/tags", {"tags": ["silver"]}, token=token)
        exported = service.get("config", token)
        assert service.ask("PUT", "config", exported, token=token).json() == []
        assert {"source": f"container/box/{box.name}", "tags": ["silver"]} in exported["tags"]
        assert disk["name"] == "disk"
        edited: dict[str, Any] = {
            "version": 1,
            "hosts": [{"name": "far", "kind": "kvm", "uri": "qemu+ssh://root@far.invalid/system", "enabled": False}],
            "schedules": [
                {"name": "as code", "covers": f"container/box/{box.name}", "cron": "5 1 * * *", "storage": "disk", "retention": {"daily": 3}},
                {"name": "by tag", "covers": "tag/silver", "cron": "0 2 * * *", "storage": "disk", "timezone": "Europe/Vienna"},
            ],
            "settings": {**exported["settings"], "keep_news_days": 45},
        }  # fmt: skip
        planned = service.ask("PUT", "config?dry_run=true", edited, token=token).json()
        before = len(exported["schedules"])
        assert service.get("config", token) == exported, "a dry run changes nothing"
        command = [sys.executable, "-m", "lab_backup", "config"]
        place = ["--data-dir", str(service.data), "--json"]
        text = yaml.safe_dump(edited)
        told = subprocess.run(
            [*command, "diff", "-", *place], input=text, capture_output=True, text=True, timeout=60, check=True
        )
        assert json.loads(told.stdout)["changes"] == planned
        done = subprocess.run(
            [*command, "apply", "-", *place], input=text, capture_output=True, text=True, timeout=60, check=True
        )
        assert json.loads(done.stdout)["changes"] == planned
        assert [change["what"] for change in planned if change["part"] == "schedules"].count("removed") == before
        shown = subprocess.run([*command, "export", *place[:2]], capture_output=True, text=True, timeout=60, check=True)
        now = yaml.safe_load(shown.stdout)
        assert [plan["name"] for plan in now["schedules"]] == ["as code", "by tag"]
        assert now["schedules"][0]["retention"]["daily"] == 3
        assert now["settings"]["keep_news_days"] == 45
        assert now["tags"] == exported["tags"], "what a document does not speak of stays"
        for wrong in (
            {"schedules": [{**edited["schedules"][0], "storage": "nowhere"}]},
            {"schedules": [{**edited["schedules"][0], "cron": "x"}]},
            {"schedules": [{**edited["schedules"][0], "covers": "container/box/nobody"}]},
            {"storages": [{"name": "disk", "url": "/elsewhere"}]},
            {"surprise": 1},
        ):  # fmt: skip
            answer = service.ask("PUT", "config", wrong, token=token)
            assert answer.status_code in {400, 404}, (wrong, answer.text)
        assert service.get("config", token) == now


def test_a_new_master_key_opens_all_that_was_sealed(service: Service, token: str, disk: Any) -> None:
    """While the service runs its key is not touched; afterwards all credentials open with the new one, and none with the old, also when the first try was killed."""
    usage = service.get(f"storage/{disk['id']}/usage", token)
    assert usage["history"][-1]["used"] == usage["used"] > 0
    assert usage["full_on"] is None
    command = [sys.executable, "-m", "lab_backup", "rotate-master-key", "--data-dir", str(service.data), "--json"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "runs already" in refused.stdout + refused.stderr
    old = (service.data / "secrets" / "master.key").read_bytes()
    service.stop()
    # As a try would leave it that was killed between its commit and the replacement of the file.
    first = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    committed = service.data / "secrets" / "master.key"
    committed.rename(committed.with_name("master.key.next"))
    committed.write_bytes(old)
    again = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert first["credentials"] == again["credentials"] >= 5
    assert committed.read_bytes() != old
    assert committed.stat().st_mode & 0o777 == 0o600
    service.start()
    fresh = service.sign_in()
    assert len(service.get(f"storage/{disk['id']}/keys", fresh)) == 1
