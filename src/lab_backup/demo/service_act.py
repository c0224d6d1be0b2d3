"""The demo's third act: the service. All that the command line did before is done by the API of one that runs."""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab_backup.demo.content import let_settle
from lab_backup.demo.errors import DemoError
from lab_backup.demo.podman_service import IMAGE, PodmanService
from lab_backup.demo.stage import Row, Stage

NAME = "demo-shop"
VOLUME = "demo-shop-data"
START_SECONDS = 90.0
JOB_SECONDS = 180.0
_USER = "demo"
_ENDED = {"succeeded", "succeeded with warnings", "failed", "cancelled", "interrupted"}
_IDLE = ("sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")


class Api:
    """The API of a service, as the user `demo`. Raises DemoError where an answer is not a good one."""

    def __init__(self, port: int) -> None:
        """Talk to the service on this port of loopback."""
        self._port = port
        self._token = ""

    def sign_in(self, password: str) -> None:
        """Sign in: what is asked from then on is asked with that token."""
        answer = self.ask("POST", "auth/login", {"username": _USER, "password": password})
        self._token = answer["access_token"]

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer's body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._token}"} if self._token else {}
        )
        try:
            connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"the service does not answer: {error}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise DemoError(f"{method} {path} was answered {response.status}: {data.decode(errors='replace')[:500]}")
        return json.loads(data) if data else None

    def done(self, job: Mapping[str, Any]) -> Any:
        """Return the job when it has ended well."""
        end = time.monotonic() + JOB_SECONDS
        while time.monotonic() < end:
            seen = self.ask("GET", f"jobs/{job['id']}")
            if seen["status"] in _ENDED:
                if not seen["status"].startswith("succeeded"):
                    raise DemoError(f"the job {seen['title']!r} {seen['status']}: {seen['error']}")
                return seen
            time.sleep(0.2)
        raise DemoError(f"the job {job['title']!r} took longer than {JOB_SECONDS:.0f} s")

    def until(self, path: str, name: str) -> Any:
        """Return the item of a list with this name as soon as it is there."""
        end = time.monotonic() + JOB_SECONDS
        while time.monotonic() < end:
            for item in self.ask("GET", path)["items"]:
                if item["name"] == name:
                    return item
            time.sleep(0.2)
        raise DemoError(f"the service does not find {name}")


def play_service(stage: Stage, podman: PodmanService) -> None:
    """Play it with containers of `podman`. Raises DemoError where anything is not as it was promised; leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="lb-demo-") as folder, _running(stage, Path(folder), podman) as api:
        _play(stage, podman, api, Path(folder) / "repository")


@contextmanager
def _running(stage: Stage, folder: Path, podman: PodmanService) -> Iterator[Api]:
    folder.chmod(0o711)  # its database does not run as root
    password, file, port = secrets.token_urlsafe(18), folder / "password", _free_port()
    file.touch(0o600)
    file.write_text(password)
    environment = {
        **os.environ,
        "CONTAINER_HOST": podman.uri,
        "LAB_BACKUP_ADMIN_USERNAME": _USER,
        "LAB_BACKUP_ADMIN_PASSWORD_FILE": str(file),
    }
    program = str(Path(sys.executable).with_name("lab-backup"))
    process = subprocess.Popen(
        [program, "up", "--data-dir", str(folder / "data"), "--port", str(port), "--json"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        with stage.step("Starting the service: a PostgreSQL and a Valkey of its own, an API, workers and a beat"):
            stage.console.print("   [cyan]$ lab-backup up[/]", highlight=False)
            if process.stdout is None or not process.stdout.readline():
                _, said = process.communicate(timeout=START_SECONDS)
                raise DemoError(f"the service did not start: {said.decode(errors='replace').strip()[-500:]}")
            api = Api(port)
            api.sign_in(password)
        yield api
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _play(stage: Stage, podman: PodmanService, api: Api, repository: Path) -> None:
    with stage.step("By its API: a storage, the host that it has found, and a schedule for a new container"):
        podman.run("volume", "create", VOLUME)
        podman.run("run", "-d", "--name", NAME, "-v", f"{VOLUME}:/data", IMAGE, *_IDLE)
        podman.run("exec", NAME, "sh", "-c", "head -c 20000000 /dev/urandom > /data/stock; echo open > /data/state")
        let_settle()
        storage = api.ask(
            "POST", "storage", {"name": "demo", "url": str(repository), "passphrase": secrets.token_urlsafe()}
        )
        host = api.until("podman/hosts", "this machine")
        api.ask("PUT", f"podman/hosts/{host['id']}", {"enabled": True})  # looks at it at once
        container = api.until(f"podman/hosts/{host['id']}/containers", NAME)
        schedule = api.ask(
            "POST",
            "schedules",
            {
                "name": "every night", "source_type": "container", "source_id": container["id"],
                "cron_expression": "30 2 * * *", "storage_backend_id": storage["id"],
            },
        )  # fmt: skip
        runs = api.ask("GET", f"schedules/{schedule['id']}/preview?count=1")["next_runs"]
        stage.say(f"POST /storage, GET /podman/hosts, POST /schedules: next at {runs[0]}")
    with stage.step("Two backups by the schedule's own hand, a change between them"):
        made = [_run(stage, api, schedule, "service, full")]
        podman.run("exec", NAME, "sh", "-c", "echo closed > /data/state")
        made.append(_run(stage, api, schedule, "service, incremental"))
        if [each["result"]["kind"] for each in made] != ["full", "incremental"]:
            raise DemoError("the second backup was not an increment")
        if made[1]["result"]["bytes_read"] > made[0]["result"]["bytes_read"] / 10:
            raise DemoError(f"{made[1]['result']['bytes_read']} bytes were read for one line of changes")
    with stage.step("Verifying both, removing the container and its volume, restoring it"):
        checked = api.done(api.ask("POST", f"storage/{storage['id']}/verify"))["result"]
        stage.say(f"{checked['backups']} backups, {checked['checked']} parts checked")
        podman.run("rm", "-f", "-t", "0", NAME)
        podman.run("volume", "rm", VOLUME)
        newest = api.ask("GET", f"backups?source={NAME}")["items"][0]
        began = time.monotonic()
        api.done(api.ask("POST", f"backups/{newest['id']}/restore", {"start": True}))
        stage.rows.append(Row("service, restore", time.monotonic() - began))
        seen = podman.run("exec", NAME, "sh", "-c", "cat /data/state; wc -c < /data/stock").stdout.split()
        if seen != [b"closed", b"20000000"]:
            raise DemoError("the restored container does not have what it had")
        podman.run("rm", "-f", "-t", "0", NAME)
        podman.run("volume", "rm", VOLUME)
        stage.say("proof: the service brought the container back, with what it had last")


def _run(stage: Stage, api: Api, schedule: Mapping[str, Any], what: str) -> Any:
    began = time.monotonic()
    done = api.done(api.ask("POST", f"schedules/{schedule['id']}/run"))
    result = done["result"]
    stage.rows.append(Row(what, time.monotonic() - began, result["bytes_read"], result["bytes_stored"]))
    return done


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def has_database() -> bool:
    """Whether PostgreSQL's server programs are there, which the service needs."""
    return shutil.which("postgres") is not None or any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
