"""Logs and notifications at a real rsyslogd, over UDP, TCP, a unix socket, and TLS."""

import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import UsageError
from lab_backup.notify import logs, syslog
from lab_backup.notify.channels import Message, NotifyError, send
from support.certificates import Authority
from support.service import free_port
from support.waiting import wait_until

RFC5424 = re.compile(rb"<(\d{1,3})>1 (\S+) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) - \xef\xbb\xbf([^\x00-\x1f]*)")


@dataclass(frozen=True)
class Rsyslog:
    """A server, its addresses, and the file that it writes what it gets to."""

    udp: str
    tcp: str
    unix: str
    file: Path

    def lines(self) -> list[str]:
        """Return what it got."""
        return self.file.read_text().splitlines() if self.file.exists() else []


@pytest.fixture(scope="module")
def server() -> Iterator[Rsyslog]:
    """Run rsyslogd on ports and a socket of its own."""
    program = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin")
    assert program, "rsyslogd is missing: deploy/setup/setup test"
    with tempfile.TemporaryDirectory(prefix="lb-sys-") as name:
        folder, udp, tcp = Path(name), free_port(), free_port()
        configuration = folder / "conf"
        configuration.write_text(
            f"""
global(workDirectory="{folder}" maxMessageSize="64k")
module(load="imudp") module(load="imtcp") module(load="imuxsock" SysSock.Use="off")
input(type="imudp" address="127.0.0.1" port="{udp}")
input(type="imtcp" address="127.0.0.1" port="{tcp}")
input(type="imuxsock" Socket="{folder}/s" UseSysTimeStamp="off" useSpecialParser="off" parseHostname="on")
template(name="line" type="string" string="%syslogfacility%.%syslogseverity% %app-name% %msgid% %msg%\\n")
action(type="omfile" file="{folder}/got" template="line")
"""
        )
        process = subprocess.Popen([program, "-n", "-f", configuration, "-i", folder / "pid"], stderr=subprocess.PIPE)
        try:
            wait_until(lambda: (folder / "s").exists() and reachable(tcp), 20)
            yield Rsyslog(
                f"syslog+udp://127.0.0.1:{udp}",
                f"syslog+tcp://127.0.0.1:{tcp}",
                f"syslog+unix://{folder}/s",
                folder / "got",
            )
        finally:
            process.terminate()
            process.communicate(timeout=20)


def reachable(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("way", ["udp", "tcp", "unix"])
def test_a_channel_tells_a_real_server(server: Rsyslog, way: str) -> None:
    """A notification arrives with its severity and all its text; nothing goes to this machine unless an administrator allows it."""
    address = getattr(server, way)
    with pytest.raises(NotifyError, match="this machine"):
        send("syslog", address, Message("no", "no", "info"))
    send("syslog", address, Message(f"backup by {way} failed", "the disk\nis ünreachable", "error"), trusted=True)
    wait_until(lambda: any(f"by {way}" in line for line in server.lines()), 20)
    line = next(line for line in server.lines() if f"by {way}" in line)
    assert line.startswith("16.3 lab-backup notification ")
    assert line.endswith(f"backup by {way} failed: the disk is ünreachable")


def test_logs_are_lines_of_json_with_the_job_and_reach_the_server(
    server: Rsyslog, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is logged with a job carries it, on standard error and at the server; audit entries are told apart; a dead server holds nobody up."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        for address in (server.tcp, f"syslog+tcp://127.0.0.1:{free_port()}"):
            listener = logs.configure("worker", address)
            logging.getLogger("lab_backup.jobs").info("job started", extra={"job": "42"})
            logging.getLogger(logs.AUDIT).info("login", extra={"user": "ada"})
            began = time.monotonic()
            for number in range(200):
                logging.getLogger("lab_backup.jobs").info("line %d", number)
            assert time.monotonic() - began < 5
            assert listener is not None
            listener.stop()
        shown = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert {"message": "job started", "job": "42", "program": "worker", "level": "info"}.items() <= shown[0].items()
        wait_until(lambda: sum('"line ' in line for line in server.lines()) == 200, 20)
        started = next(line for line in server.lines() if "job started" in line)
        assert started.startswith("16.6 lab-backup log ")
        assert json.loads(started[started.index("{") :])["job"] == "42"
        assert any(line.startswith("16.6 lab-backup audit ") and "ada" in line for line in server.lines())
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_over_tls_the_certificate_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS a message arrives counted (RFC 6587), and nothing is sent to a server whose certificate is not trusted."""
    authority = Authority(tmp_path / "ca")
    own = authority.server(tmp_path / "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own / "server-cert.pem", own / "server-key.pem")
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                plain, _ = listening.accept()
                try:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        got.append(secure.recv(65536))
                except OSError:
                    got.append(b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        place = syslog.parse(f"syslog+tls://localhost:{listening.getsockname()[1]}")
        data = syslog.message("info", "log", "over TLS", when=datetime.now(UTC))
        with pytest.raises(syslog.SyslogError):
            syslog.send(place, data)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        syslog.send(place, data)
        thread.join(20)
    assert got == [b"", f"{len(data)} ".encode() + data]


@given(kind=st.text(max_size=40), text=st.text(st.characters(), max_size=300), host=st.text(min_size=1, max_size=80))
def test_any_text_makes_one_message(kind: str, text: str, host: str) -> None:
    """Whatever a name or text holds, the message has the form of RFC 5424 and one line."""
    data = syslog.message("warning", kind, text, when=datetime(2030, 1, 2, tzinfo=UTC), host=host)
    found = RFC5424.fullmatch(data)
    assert found is not None
    assert found[1] == b"132"
    assert b"\n" not in data


@pytest.mark.parametrize(
    "address",
    [
        "syslog://host",
        "syslog+udp://",
        "udp://host",
        "syslog+unix://relative",
        "syslog+tcp://a:b",
        "syslog+tls://u@h",
        "x",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    """What names no server is refused before anything is sent."""
    with pytest.raises(UsageError):
        syslog.parse(address)
