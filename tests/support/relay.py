"""A relay before a unix socket, with TLS if wanted, that can cut its connections at will."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 30.0


class Relay:
    """Listens on a port of the loopback interface; a context manager. `cut_after` bytes of answers it hangs up."""

    def __init__(self, target: Path, *, tls: Path | None = None, cut_after: int | None = None) -> None:
        """Relay to `target`; with the server's files and the authority in `tls`, only to clients with a certificate."""
        self._target = target
        self._cut_after = cut_after
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls / "server-cert.pem", tls / "server-key.pem")
            self._context.load_verify_locations(tls / "ca-cert.pem")
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def _run(self, work: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type] # any of our methods
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            near = connection
            if self._context is not None:
                near = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            far = stack.enter_context(socket.socket(socket.AF_UNIX))
            far.settimeout(PATIENCE)
            far.connect(str(self._target))
            there = self._run(_ask, near, far)
            _copy(far, near, self._cut_after)
            for end in (near, far):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join(PATIENCE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in tuple(self._threads):
            thread.join(PATIENCE)


def _ask(near: socket.socket, far: socket.socket) -> None:
    _copy(near, far, None)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)  # whoever asked is gone


def _copy(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    done = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
            done += len(data)
            if limit is not None and done >= limit:
                return
