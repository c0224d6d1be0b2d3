"""The service's own PostgreSQL: made once, on a socket in the data directory, open to this user alone."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from lab_backup.errors import LabBackupError
from lab_backup.service.account import Account

NAME = "labbackup"
LONGEST_SOCKET = 107 - len("/.s.PGSQL.5432.lock")  # bytes, of sun_path in unix(7)
START_SECONDS = 60
STOP_SECONDS = 30


def binaries() -> Path:
    """Return the folder with the newest `initdb` of this machine. Raises LabBackupError."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    if on_path:
        return Path(on_path).resolve().parent
    raise LabBackupError(
        "PostgreSQL is not installed", hint="apt-get install postgresql-15, or set DATABASE_URL and REDIS_URL"
    )


class Database:
    """A PostgreSQL below `folder`."""

    def __init__(self, folder: Path, account: Account) -> None:
        """Take the folder; nothing is started. Raises LabBackupError for one whose path is too long for a socket."""
        self._data = folder / "postgres"
        self._sockets = folder / "run"
        self._log = folder / "log" / "postgres.log"
        self._account = account
        if len(os.fsencode(self._sockets)) > LONGEST_SOCKET:
            raise LabBackupError(
                f"the path {folder} is too long for the database's socket", hint="choose a shorter --data-dir"
            )

    @property
    def url(self) -> str:
        """Where it is, for SQLAlchemy."""
        return f"postgresql+psycopg://{NAME}@/{NAME}?host={quote(str(self._sockets))}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and make it first where there is none; return when it answers. Raises LabBackupError."""
        programs = self._programs()
        if not (self._data / "PG_VERSION").exists():
            self._make(programs)
        self._wait_for_end_of_another()
        arguments = [
            str(programs / "postgres"), "-D", str(self._data), "-k", str(self._sockets), "-h", "",
            "-c", "unix_socket_permissions=0700", "-c", "max_connections=200",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._account.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        try:
            self._wait(programs, process)
            self._make_database(programs)
        except BaseException:
            process.terminate()
            process.wait(STOP_SECONDS)
            raise
        return process

    def _programs(self) -> Path:
        """Return the programs that fit the data: those of its own major version."""
        try:
            major = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return binaries()
        own = Path("/usr/lib/postgresql") / major / "bin"
        if (own / "postgres").exists():
            return own
        newest = binaries()
        said = subprocess.run(
            [str(newest / "postgres"), "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
        if f" {major}." in said:
            return newest
        raise LabBackupError(
            f"the database in {self._data} is one of PostgreSQL {major}, which is not installed",
            hint=f"apt-get install postgresql-{major}",
        )

    def _make(self, programs: Path) -> None:
        part = self._data.with_name("postgres.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(0o700)
        os.chown(part, self._account.uid, self._account.gid)
        self._run(
            str(programs / "initdb"), "--pgdata", str(part), "--username", NAME, "--encoding", "UTF8", "--locale", "C.UTF-8",
            "--auth", "reject", "--data-checksums", "--no-instructions",
        )  # fmt: skip
        me = pwd.getpwuid(os.geteuid()).pw_name
        (part / "pg_hba.conf").write_text(f"local all {NAME} peer map=own\n")
        (part / "pg_ident.conf").write_text("".join(f"own {name} {NAME}\n" for name in {me, self._account.name}))
        part.rename(self._data)

    def _wait_for_end_of_another(self) -> None:
        """One that was left by a killed service ends by itself; two on the same data would be refused by PostgreSQL."""
        lock = self._data / "postmaster.pid"
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until:
            try:
                number = int(lock.read_text().split("\n", 1)[0])
                os.kill(number, 0)
            except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
                return
            time.sleep(0.1)
        raise LabBackupError(
            "another service uses the same data directory", hint="end it, or choose another --data-dir"
        )

    def _wait(self, programs: Path, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + START_SECONDS
        ready = [str(programs / "pg_isready"), "--quiet", "--host", str(self._sockets)]
        while subprocess.run(ready, timeout=30, check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > until:
                raise LabBackupError("the service's database does not start", hint=f"its log says why: {self._log}")
            time.sleep(0.05)

    def _make_database(self, programs: Path) -> None:
        select = [str(programs / "psql"), "-h", str(self._sockets), "-U", NAME, "-d", "postgres", "-qtAX", "-c"]
        there = subprocess.run(
            [*select, f"select 1 from pg_database where datname = '{NAME}'"],  # noqa: S608  a constant
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if there.returncode == 0 and not there.stdout.strip():
            self._run(str(programs / "createdb"), "-h", str(self._sockets), "-U", NAME, NAME)
        elif there.returncode != 0:
            raise LabBackupError(
                "the service's database does not let this user in", hint=f"its log says why: {self._log}"
            )

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            self._account.command(*arguments), capture_output=True, text=True, timeout=120, check=False, cwd="/"
        )
        if done.returncode != 0:
            raise LabBackupError(f"{Path(arguments[0]).name} failed: {done.stderr.strip()[-300:]}")
