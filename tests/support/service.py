"""The real service for tests: `lab-backup up` in a folder of its own, and a client that is signed in."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

NAME, PASSWORD = "ada", "purple walrus ninety doorbell"
START_SECONDS = 60
ENDED = {"succeeded", "succeeded with warnings", "failed", "cancelled", "interrupted"}


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Service:
    """A service that runs, with its first administrator. It can be stopped, killed and started again."""

    def __init__(self, *, rate: int = 1200) -> None:
        self.rate = rate
        self.folder = Path(tempfile.mkdtemp(prefix="lb-up-"))
        self.folder.chmod(0o711)  # the database does not run as root
        self.data = self.folder / "data"
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self.setup: str | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            token = (self.setup or "").partition("#")[2]
            self.post("setup", {"token": token, "username": NAME, "password": PASSWORD}, status=201)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if self.process is not None:
            self.stop()
        if error is not None and not isinstance(error, KeyboardInterrupt):
            for path in sorted(self.data.glob("log/*.log")):
                sys.stderr.write(f"--- {path.name}\n{path.read_text()[-4000:]}\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab_backup", "up", "--data-dir", self.data, "--port", str(self.port), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "CONTAINER_HOST": f"unix://{self.folder}/no-podman.sock",
                "LAB_BACKUP_REQUESTS_PER_MINUTE": str(self.rate),
            },
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=10)[1]
        self.setup = json.loads(line)["setup"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        process.communicate(timeout=90)
        return process.returncode

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}/api/v1"

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **extra: Any
    ) -> httpx.Response:
        """Return the answer to a request."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.request(method, f"{self.url}/{path}", json=body, headers=headers, timeout=60, **extra)

    def post(self, path: str, body: Any = None, *, token: str | None = None, status: int) -> Any:
        """Return the body of the answer, which has this status."""
        answer = self.ask("POST", path, body, token=token)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def get(self, path: str, token: str) -> Any:
        """Return the body of the answer to a question that is allowed."""
        answer = self.ask("GET", path, token=token)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sign_in(self, name: str = NAME, password: str = PASSWORD) -> str:
        """Return an access token."""
        token: str = self.post("auth/login", {"username": name, "password": password}, status=200)["access_token"]
        return token

    def job(self, identity: str, token: str, *, seconds: float = 90) -> Any:
        """Return a job when it has ended."""
        return self.until(lambda: self.get(f"jobs/{identity}", token), lambda job: job["status"] in ENDED, seconds)

    def until(self, look: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 60) -> Any:
        """Return what `look` sees when it is good."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen = look()
            if good(seen):
                return seen
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s: {look()}")
