"""A proxy before an HTTP server that can do to each request what networks, load balancers and servers in trouble do."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

PATIENCE = 30.0


class Fault(Enum):
    """What happens to a request."""

    NONE = "none"
    DROP_BEFORE = "the connection is dropped before the server sees it"
    DROP_AFTER = "the server does it, and the answer is lost"
    CUT = "half of the answer comes, then nothing"
    FLIP_DOWN = "a bit of the answer's body flips"
    FLIP_UP = "a bit of the request's body flips"
    TWICE = "the server gets it twice"
    ERROR_500 = "500"
    SLOW_DOWN = "503"
    TOO_MANY = "429"
    DENIED = "403"


_ANSWERS = {
    Fault.ERROR_500: ("500 Internal Server Error", "InternalError"),
    Fault.SLOW_DOWN: ("503 Slow Down", "SlowDown"),
    Fault.TOO_MANY: ("429 Too Many Requests", "TooManyRequests"),
    Fault.DENIED: ("403 Forbidden", "AccessDenied"),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its number from 1, its method, its target."""

    number: int
    method: str
    target: str


def never(_: Request) -> Fault:
    """Let everything through."""
    return Fault.NONE


class HttpProxy:
    """Listens on a port of the loopback interface; a context manager. `plan` says what happens to each request; `seen` holds what came."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Pass on to `port` of this machine; speak TLS to clients where `tls` is given."""
        self._port = port
        self._tls = tls
        self.plan: Callable[[Request], Fault] = never
        self.seen: list[Request] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        scheme = "http" if tls is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def reset(self, plan: Callable[[Request], Fault] = never) -> None:
        """Count from 1 again, and follow `plan`."""
        with self._lock:
            self.seen = []
            self.plan = plan

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            near = connection
            if self._tls is not None:
                near = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            head, rest = _until_blank_line(near)
            if not head:
                return
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            if b"\r\nexpect: 100-continue" in head.lower():
                near.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = _body(near, head, rest)
            with self._lock:
                request = Request(len(self.seen) + 1, method, target)
                self.seen.append(request)
                fault = self.plan(request)
            answer = self._answer(head, body, fault)
            if answer:
                near.sendall(answer)

    def _answer(self, head: bytes, body: bytes, fault: Fault) -> bytes:
        if fault is Fault.DROP_BEFORE:
            return b""
        if fault in _ANSWERS:
            status, code = _ANSWERS[fault]
            text = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told by the proxy</Message></Error>".encode()
            )
            empty = head.startswith(b"HEAD ")
            size = 0 if empty else len(text)
            start = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            return start.encode() + (b"" if empty else text)
        if fault is Fault.FLIP_UP:
            body = _flipped(body, 0)
        if fault is Fault.TWICE:
            self._ask(head, body)
        answer = self._ask(head, body)
        end = answer.find(b"\r\n\r\n") + 4
        match fault:
            case Fault.DROP_AFTER:
                return b""
            case Fault.CUT:
                return answer[: end + (len(answer) - end) // 2] if len(answer) > end else answer[: end // 2]
            case Fault.FLIP_DOWN:
                return _flipped(answer, end)
            case _:
                return answer

    def _ask(self, head: bytes, body: bytes) -> bytes:
        """Return the server's whole answer."""
        lines = [
            line
            for line in head.rstrip(b"\r\n").split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"expect:"))
        ]
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as far:
            far.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            parts = []
            while part := far.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def _until_blank_line(source: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = source.recv(1 << 16)
        if not part:
            return b"", b""
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _body(source: socket.socket, head: bytes, begun: bytes) -> bytes:
    """Return the request's body as it is on the wire."""
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
    length = int(fields.get(b"content-length", b"0"))
    data = begun
    while (chunked and not data.endswith(b"0\r\n\r\n")) or (not chunked and len(data) < length):
        part = source.recv(1 << 16)
        if not part:
            return data
        data += part
    return data


def _flipped(data: bytes, start: int) -> bytes:
    """Return the data with one bit of its middle, from `start` on, flipped; as it is where there is nothing."""
    if len(data) <= start:
        return data
    at = (start + len(data)) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
