"""The logs of API, workers and beat: one JSON object a line on standard error, and if wanted to a syslog server as well."""

import json
import logging
import queue
import sys
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener

from lab_backup.notify import syslog

AUDIT = "lab_backup.audit"
WAITING = 10_000  # messages for a syslog server that is slow; more are dropped, for a backup must not wait for them
_KNOWN = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SEVERITIES = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (0, "info"))


class JsonLines(logging.Formatter):
    """Time, level, program, logger and message of a record, and what was given as `extra`, such as the job."""

    def __init__(self, program: str) -> None:
        """Name the `program` in each line."""
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _KNOWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class SyslogHandler(logging.Handler):
    """Sends records to a syslog server. What does not get there is lost: standard error has it."""

    def __init__(self, address: syslog.SyslogAddress) -> None:
        """Send to `address`."""
        super().__init__()
        self._address = address

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        severity = next(word for level, word in _SEVERITIES if record.levelno >= level)
        kind = "audit" if record.name == AUDIT else "log"
        when = datetime.fromtimestamp(record.created, UTC)
        try:
            syslog.send(self._address, syslog.message(severity, kind, self.format(record), when=when))
        except syslog.SyslogError:
            return


class _Dropping(QueueHandler):
    """Hands records on without ever waiting, as they are: who formats them needs what was given as `extra`."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


def configure(program: str, server: str | None = None) -> QueueListener | None:
    """Let this process log so; `server` is an address as `notify.syslog.parse` reads it. Returns what sends to it, which `stop()` ends. Raises UsageError."""
    lines = JsonLines(program)
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(lines)
    handlers: list[logging.Handler] = [shown]
    listener = None
    if server:
        remote = SyslogHandler(syslog.parse(server))
        remote.setFormatter(lines)
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
        listener = QueueListener(waiting, remote)
        listener.start()
        handlers.append(_Dropping(waiting))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("lab_backup").setLevel(logging.INFO)
    return listener
