"""The service in parts for tests: one PostgreSQL and one Valkey, and as many API processes, beats and workers beside them as a test wants."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lab_backup.catalog.base import Sessions, connect
from lab_backup.catalog.migrate import migrate
from lab_backup.service.account import service_account
from lab_backup.service.database import Database
from lab_backup.service.first_run import FirstAdministrator, setup_token
from lab_backup.service.folders import prepare
from lab_backup.service.valkey import Valkey
from support.service import ENDED, NAME, PASSWORD, free_port

START_SECONDS = 90.0
STOP_SECONDS = 90.0


@dataclass
class Part:
    """A process of the service, in a session of its own: all that it starts can be killed with it."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes]

    def kill(self, *, whole: bool) -> None:
        """Kill it with -9; `whole`: with all that it has started, except what left its session on purpose."""
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)


@dataclass
class Cluster:
    """A PostgreSQL and a Valkey that run, with an administrator; `start` adds parts. Left, nothing of it runs any more."""

    rate: int = 1_000_000
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="lb-cl-")))
    parts: list[Part] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def __enter__(self) -> Self:
        self.folder.chmod(0o711)  # the database does not run as root
        account = service_account()
        prepare(self.folder, account)
        self.database, self.valkey = Database(self.folder, account), Valkey(self.folder, account)
        self._servers: list[tuple[subprocess.Popen[bytes], signal.Signals]] = []
        try:
            self._servers.append((self.database.start(), signal.SIGINT))
            self._servers.append((self.valkey.start(), signal.SIGTERM))
            migrate(self.database.url)
            self._engine, self.sessions = connect(self.database.url)
            (self.folder / "password").write_text(PASSWORD)
            setup_token(self.sessions, FirstAdministrator(NAME, self.folder / "password"))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    sessions: Sessions = field(init=False)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self.client.close()
            self.stop()
            if hasattr(self, "_engine"):
                self._engine.dispose()
        finally:
            for process, number in reversed(self._servers):
                process.send_signal(number)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if error is not None:
                for path in sorted(self.folder.glob("log/*.log")):
                    sys.stderr.write(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}\n")
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, kind: str, *arguments: str, first: str = "") -> Part:
        """Start `lab-backup KIND ARGUMENTS`, after the Python of `first`; an API is waited for by `wait_for_apis`."""
        words = [kind, *arguments]
        if kind == "api":
            port = free_port()
            words += ["--port", str(port)]
            self.urls.append(f"http://127.0.0.1:{port}/api/v1")
        name = f"{kind}{sum(part.arguments[0] == kind for part in self.parts)}"
        part = Part(name, words, self._run(name, words, first))
        self.parts.append(part)
        return part

    def again(self, part: Part) -> None:
        """Start once more what was killed."""
        part.process = self._run(part.name, part.arguments)

    def _run(self, name: str, words: list[str], first: str = "") -> subprocess.Popen[bytes]:
        environment = {
            "DATABASE_URL": self.database.url,
            "REDIS_URL": self.valkey.url,
            "LAB_BACKUP_DATA_DIR": str(self.folder),
            "LAB_BACKUP_REQUESTS_PER_MINUTE": str(self.rate),
        }
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", f"{first}\nfrom lab_backup.program import run; run()", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all parts in order, the newest first."""
        while self.parts:
            part = self.parts.pop()
            part.process.send_signal(signal.SIGTERM)
            try:
                part.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                part.kill(whole=True)

    def wait_for_apis(self) -> None:
        """Return when every API answers."""
        end = time.monotonic() + START_SECONDS
        for url in self.urls:
            while True:
                with suppress(httpx.HTTPError):
                    if self.client.get(f"{url}/health/ready").status_code == 200:
                        break
                assert time.monotonic() < end, f"{url} does not answer"
                time.sleep(0.1)

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, api: int = 0) -> Any:
        """Return the body of the answer of one of the APIs, which is no error."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = self.client.request(method, f"{self.urls[api % len(self.urls)]}/{path}", json=body, headers=headers)
        assert answer.status_code < 400, answer.text
        return answer.json() if answer.content else None

    def sign_in(self) -> str:
        """Return an access token of the administrator."""
        token: str = self.ask("POST", "auth/login", {"username": NAME, "password": PASSWORD})["access_token"]
        return token

    def job(self, identity: str, token: str, *, seconds: float = 90) -> Any:
        """Return a job when it has ended."""
        end = time.monotonic() + seconds
        while True:
            job = self.ask("GET", f"jobs/{identity}", token=token)
            if job["status"] in ENDED:
                return job
            assert time.monotonic() < end, f"not within {seconds} s: {job}"
            time.sleep(0.2)
