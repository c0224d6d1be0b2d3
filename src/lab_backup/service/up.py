"""`lab-backup up`: everything on one machine, in one process tree."""

import http.client
import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from signal import SIGINT, SIGTERM
from subprocess import Popen
from urllib.parse import quote

from lab_backup.catalog.base import connect
from lab_backup.catalog.migrate import migrate
from lab_backup.errors import LabBackupError
from lab_backup.service.account import service_account
from lab_backup.service.certificate import fingerprint, own_certificate
from lab_backup.service.database import Database
from lab_backup.service.first_run import FirstAdministrator, find_local_hosts, setup_token
from lab_backup.service.folders import held, prepare, write_addresses
from lab_backup.service.tree import Tree, start_program
from lab_backup.service.valkey import Valkey
from lab_backup.settings import DATA, DATABASE, REDIS, Settings

READY_SECONDS = 60.0
WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers. `setup` is the one-time link for the first administrator, None where there is one; `fingerprint` that of its own certificate."""

    url: str
    setup: str | None
    fingerprint: str | None
    found: tuple[str, ...]
    data_directory: str


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def run(
    folder: Path,
    *,
    host: str,
    port: int,
    workers: int,
    certificate: tuple[Path, Path] | None,
    first: FirstAdministrator | None,
    ready: Callable[[Running], None],
    note: Callable[[str], None],
) -> None:
    """Run the service until KeyboardInterrupt, which ends it in order. `ready` is told once it answers, `note` what happens later.

    Anywhere but on loopback it speaks TLS, with a certificate of its own where none is given. Raises LabBackupError where it cannot start or go on.
    """
    folder = folder.resolve()
    account = service_account()
    prepare(folder, account)
    with held(folder):
        tree = Tree()
        try:
            database, valkey = Database(folder, account), Valkey(folder, account)
            tree.add("database", database.start(), end=SIGINT)
            tree.add("Valkey", valkey.start())
            settings = Settings(database.url, valkey.url, folder)
            migrate(settings.database_url)
            write_addresses(settings)
            _, sessions = connect(settings.database_url)
            token = setup_token(sessions, first)
            found = tuple(find_local_hosts(sessions))
            pair = certificate or (None if is_loopback(host) else own_certificate(settings.secrets_directory, host))
            _start_programs(tree, settings, host, port, workers, pair)
            url = _wait(tree, host, port, pair)
            link = None if token is None else f"{url}/setup#{quote(token)}"
            own = fingerprint(pair[0]) if pair is not None and certificate is None else None
            ready(Running(url, link, own, found, str(folder)))
            while True:
                time.sleep(WATCH_SECONDS)
                for name in tree.watch():
                    note(f"{name} had ended and was started again")
        finally:
            tree.stop()


def _start_programs(
    tree: Tree, settings: Settings, host: str, port: int, workers: int, pair: tuple[Path, Path] | None
) -> None:
    environment = {DATABASE: settings.database_url, REDIS: settings.redis_url, DATA: str(settings.data_directory)}
    tls = [] if pair is None else ["--certificate", str(pair[0]), "--key", str(pair[1])]
    for name, arguments in (
        ("worker", ["worker", "--concurrency", str(workers)]),
        ("beat", ["beat"]),
        ("api", ["api", "--host", host, "--port", str(port), *tls]),
    ):

        def start(name: str = name, arguments: list[str] = arguments) -> Popen[bytes]:
            return start_program(name, arguments, environment, settings.data_directory / "log")

        tree.add(name, start(), end=SIGTERM, again=start)


def _wait(tree: Tree, host: str, port: int, pair: tuple[Path, Path] | None) -> str:
    """Return where the API answers. Raises LabBackupError where it does not within READY_SECONDS."""
    shown = f"[{host}]" if ":" in host else host
    reached = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104  all addresses: ask on one of them
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        tree.watch()
        with suppress(OSError, http.client.HTTPException):
            if pair is None:
                connection = http.client.HTTPConnection(reached, port, timeout=5)
            else:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = (
                    False,
                    ssl.CERT_NONE,
                )  # asks only whether it is up, and sends nothing
                connection = http.client.HTTPSConnection(reached, port, timeout=5, context=context)
            connection.request("GET", "/api/v1/health/live")
            answered = connection.getresponse().status == 200
            connection.close()
            if answered:
                return f"{'http' if pair is None else 'https'}://{shown}:{port}"
        time.sleep(0.1)
    raise LabBackupError(
        f"the API does not answer on {shown}:{port}",
        hint="is the port in use? The log of the API in the data directory says why",
    )


def default_workers() -> int:
    """Return how many jobs run at once where nobody says: each keeps about two cores busy."""
    return max(2, (os.cpu_count() or 2) // 2)
