"""The commands of the service: all of it at once, or its parts for several hosts."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab_backup.cli import printing
from lab_backup.cli.exit_codes import ExitCode
from lab_backup.cli.options import JsonOption, examples
from lab_backup.errors import UsageError
from lab_backup.service import configuration_commands
from lab_backup.service.options import DataOption

if TYPE_CHECKING:
    from lab_backup.service.up import Running

HostOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen. On any address but loopback it speaks TLS.")
]
PortOption = Annotated[int, typer.Option(min=1, max=65535, help="Which port to listen on.")]
CertificateOption = Annotated[
    Path | None, typer.Option(metavar="FILE", readable=False, help="A TLS certificate (PEM), with those above it.")
]
KeyOption = Annotated[Path | None, typer.Option(metavar="FILE", readable=False, help="Its private key (PEM).")]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, max=256, help="How many jobs run at once.")
]


def up(
    data_dir: DataOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    concurrency: ConcurrencyOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Run the whole service on this machine, with its own PostgreSQL and Valkey. Ctrl-C ends it; what ran is done again at the next start."""
    from lab_backup.service import up as service
    from lab_backup.service.first_run import PASSWORD_FILE, USERNAME, FirstAdministrator
    from lab_backup.service.folders import default_data_directory

    name, file = os.environ.get(USERNAME), os.environ.get(PASSWORD_FILE)
    if (name is None) != (file is None):
        raise UsageError(f"{USERNAME} and {PASSWORD_FILE} go together", hint="set both, or none")
    service.run(
        data_dir or default_data_directory(),
        host=host,
        port=port,
        workers=concurrency or service.default_workers(),
        certificate=_pair(certificate, key),
        first=FirstAdministrator(name, Path(file)) if name and file else None,
        ready=lambda running: printing.show(running, _ready, as_json=as_json),
        note=lambda text: printing.tell("warning", text),
    )
    return ExitCode.DONE


def _ready(running: "Running") -> str:
    lines = [f"Lab Backup answers at {running.url}", f"Its data is in {running.data_directory}"]
    lines += [f"Found: {', '.join(running.found)}"] if running.found else []
    lines += [f"Its own certificate has the SHA-256 fingerprint {running.fingerprint}"] if running.fingerprint else []
    lines += [f"Make the first administrator, once: {running.setup}"] if running.setup else []
    return "\n".join([*lines, "Ctrl-C ends it."])


def _pair(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--certificate and --key go together", hint="give both, or none")
    for path in (certificate, key):
        if not path.is_file():
            raise UsageError(f"{path} is not a file")
    return certificate, key


def api(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> ExitCode:
    """Run the API alone, with DATABASE_URL, REDIS_URL and LAB_BACKUP_DATA_DIR from the environment."""
    import uvicorn

    from lab_backup.api.app import create_app
    from lab_backup.notify.logs import configure
    from lab_backup.service.up import is_loopback
    from lab_backup.settings import read_settings

    pair = _pair(certificate, key)
    if pair is None and not is_loopback(host):
        raise UsageError(
            f"on {host} the API must speak TLS",
            hint="give --certificate and --key, or listen on 127.0.0.1 behind a proxy that does",
        )
    settings = read_settings()
    configure("api", settings.syslog)
    uvicorn.run(
        create_app(settings),
        log_config=None,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        ssl_certfile=None if pair is None else str(pair[0]),
        ssl_keyfile=None if pair is None else str(pair[1]),
    )
    return ExitCode.DONE


def worker(
    queues: Annotated[str, typer.Option("--queues", "-Q", metavar="NAME,…", help="Which queues to serve.")] = "default",
    concurrency: ConcurrencyOption = None,
) -> None:
    """Run a worker alone, with DATABASE_URL, REDIS_URL and LAB_BACKUP_DATA_DIR from the environment."""
    from lab_backup.service.up import default_workers
    from lab_backup.worker import app

    number = str(concurrency or default_workers())
    app.worker_main(
        [
            "worker",
            "--pool=prefork",
            f"--concurrency={number}",
            f"--queues={queues}",
            "--without-gossip",
            "--without-mingle",
            "--loglevel=WARNING",
        ]
    )


def beat() -> ExitCode:
    """Run the beat alone: it sends jobs, serves schedules and keeps house. Of several one works, the others stand by."""
    from datetime import UTC, datetime
    from threading import Event

    from lab_backup.catalog.base import connect
    from lab_backup.catalog.leader import Leader
    from lab_backup.jobs.beat import Beat
    from lab_backup.jobs.broker import make_app, sender
    from lab_backup.notify.logs import configure
    from lab_backup.settings import read_settings

    settings = read_settings()
    configure("beat", settings.syslog)
    engine, sessions = connect(settings.database_url)
    over = Event()
    try:
        Beat(sessions, Leader(engine), sender(make_app(settings.redis_url)), lambda: datetime.now(UTC)).run(over)
    finally:
        engine.dispose()
    return ExitCode.DONE


def migrate(data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Bring the database to the shape that this version works with. `up` does that by itself."""
    from lab_backup.catalog.migrate import migrate as bring
    from lab_backup.service.folders import settings_of

    version = bring(settings_of(data_dir).database_url)
    printing.show(
        {"migration": version}, lambda value: f"The database is at migration {value['migration']}.", as_json=as_json
    )
    return ExitCode.DONE


def reset_password(
    username: Annotated[str, typer.Argument(metavar="USER", help="Whose password.")],
    password_file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", readable=False, help="A file with the new password on its first line; - is stdin."
        ),
    ] = Path("-"),
    data_dir: DataOption = None,
    as_json: JsonOption = False,
) -> ExitCode:
    """Give a user of the running service a new password, unlock them, and end their sessions."""
    from lab_backup.catalog.base import connect
    from lab_backup.service import first_run
    from lab_backup.service.folders import settings_of

    try:
        text = sys.stdin.readline() if str(password_file) == "-" else password_file.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{password_file} holds no password that can be read") from error
    engine, sessions = connect(settings_of(data_dir).database_url)
    try:
        with sessions() as session:
            first_run.reset_password(session, username, text.rstrip("\n"))
            session.commit()
    finally:
        engine.dispose()
    printing.show({"user": username}, lambda value: f"{value['user']} has a new password.", as_json=as_json)
    return ExitCode.DONE


def verify_audit(data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Check that no entry of the audit log was changed or taken out."""
    from lab_backup.catalog.audit import verify_audit as check
    from lab_backup.catalog.base import connect
    from lab_backup.security.sealed import read_or_make_key
    from lab_backup.service.folders import settings_of

    settings = settings_of(data_dir)
    engine, _ = connect(settings.database_url)
    try:
        count, broken = check(engine, read_or_make_key(settings.secrets_directory / "audit.key"))
    finally:
        engine.dispose()
    printing.show(
        {"entries": count, "broken": broken},
        lambda _: (
            f"{count} entries, "
            + ("all sound" if broken is None else f"number {broken} was changed, or one before it is gone")
        ),
        as_json=as_json,
    )
    return ExitCode.DONE if broken is None else ExitCode.DAMAGED


def rotate_master_key(data_dir: DataOption = None, as_json: JsonOption = False) -> ExitCode:
    """Give the service, which must not run, a new master key, and seal all credentials in its database with it."""
    from lab_backup.service.folders import default_data_directory
    from lab_backup.service.master_key import rotate

    count = rotate((data_dir or default_data_directory()).resolve())
    printing.show(
        {"credentials": count},
        lambda value: (
            f"{value['credentials']} credentials are sealed with a new master key. Copy the folder `secrets` anew: dumps of the database from now on need it."
        ),
        as_json=as_json,
    )
    return ExitCode.DONE


NAMES = ("up", "api", "worker", "beat", "migrate", "reset-password", "verify-audit", "rotate-master-key", "config")


def add_to(program: typer.Typer) -> None:
    """Add the commands to the program."""
    program.command(
        "up", epilog=examples("lab-backup up", "lab-backup up --data-dir /srv/lab-backup --host 192.0.2.10 --port 8443")
    )(up)
    program.command("api", epilog=examples("lab-backup api --port 8000"))(api)
    program.command("worker", epilog=examples("lab-backup worker", "lab-backup worker -Q host.kvm7 -c 2"))(worker)
    program.command("beat", epilog=examples("lab-backup beat"))(beat)
    program.command("migrate", epilog=examples("lab-backup migrate"))(migrate)
    program.command("reset-password", epilog=examples("lab-backup reset-password admin --password-file /root/new"))(
        reset_password
    )
    program.command("verify-audit", epilog=examples("lab-backup verify-audit"))(verify_audit)
    program.add_typer(configuration_commands.program, name="config")
    program.command("rotate-master-key", epilog=examples("lab-backup rotate-master-key"))(rotate_master_key)
