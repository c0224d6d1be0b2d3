"""An NBD server that does what a test tells it, lies included, over a pair of sockets in this process."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lab_backup.nbd.stream import Stream

ACK, INFO, CONTEXT = 1, 3, 4
STARTTLS, GO, STRUCTURED_REPLY, SET_META_CONTEXT = 5, 7, 8, 10
DATA, HOLE, STATUS, ERROR = 1, 2, 5, 0x8001
WRITABLE = 1 | 4 | 32 | 64  # flags: present, flush, trim, write zeroes


class Asked(NamedTuple):
    """A request as it came."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Peer:
    """The server's end of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def receive(self, count: int) -> bytes:
        """Return exactly so many bytes; ConnectionError at the end of the stream."""
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def greet(self, flags: int = 3) -> None:
        """Say hello, and take the client's flags."""
        self.send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags))
        self.receive(4)

    def option(self) -> tuple[int, bytes]:
        """Take an option."""
        magic, number, length = struct.unpack(">8sII", self.receive(16))
        assert magic == b"IHAVEOPT"
        return number, self.receive(length)

    def answer(self, option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> None:
        """Answer an option; `length` may lie."""
        size = len(data) if length is None else length
        self.send(struct.pack(">QIII", 0x3E889045565A9, option, kind, size) + data)

    def export(self, size: int, flags: int = WRITABLE) -> None:
        """Answer GO with the size of the export."""
        self.answer(GO, INFO, struct.pack(">HQH", 0, size, flags))

    def handshake(
        self,
        size: int,
        *,
        flags: int = WRITABLE,
        blocks: tuple[int, int] | None = None,
        contexts: tuple[str, ...] = (),
        structured: bool = True,
    ) -> None:
        """Behave well until the export is open. The contexts get the ids 10, 11 and so on."""
        self.greet()
        while True:
            option, _ = self.option()
            if option == STRUCTURED_REPLY:
                self.answer(option, ACK if structured else 0x80000001)
            elif option == SET_META_CONTEXT:
                for number, name in enumerate(contexts, 10):
                    self.answer(option, CONTEXT, struct.pack(">I", number) + name.encode())
                self.answer(option, ACK)
            else:
                assert option == GO
                self.export(size, flags)
                if blocks:
                    self.answer(GO, INFO, struct.pack(">HIII", 3, blocks[0], blocks[0], blocks[1]))
                self.answer(GO, ACK)
                return

    def request(self) -> Asked:
        """Take a request, without the data of a write."""
        magic, *rest = struct.unpack(">IHHQQI", self.receive(28))
        assert magic == 0x25609513
        return Asked(*rest)

    def chunk(self, cookie: int, kind: int, data: bytes = b"", *, done: bool = True, length: int | None = None) -> None:
        """Send a piece of a structured reply; `length` may lie."""
        size = len(data) if length is None else length
        self.send(struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, size) + data)

    def simple(self, cookie: int, error: int = 0) -> None:
        """Send a simple reply."""
        self.send(struct.pack(">IIQ", 0x67446698, error, cookie))

    def data(self, asked: Asked, data: bytes, *, at: int | None = None, done: bool = True) -> None:
        """Send data, by default for the place that was asked for."""
        offset = asked.offset if at is None else at
        self.chunk(asked.cookie, DATA, struct.pack(">Q", offset) + data, done=done)

    def hole(self, asked: Asked, offset: int, length: int, *, done: bool = True) -> None:
        """Send a hole."""
        self.chunk(asked.cookie, HOLE, struct.pack(">QI", offset, length), done=done)

    def status(self, asked: Asked, extents: list[tuple[int, int]], *, context: int = 10, done: bool = True) -> None:
        """Send extents: pairs of length and flags."""
        body = struct.pack(">I", context) + b"".join(struct.pack(">II", *extent) for extent in extents)
        self.chunk(asked.cookie, STATUS, body, done=done)

    def error(self, asked: Asked, code: int, text: bytes = b"", *, done: bool = True) -> None:
        """Answer with an error."""
        self.chunk(asked.cookie, ERROR, struct.pack(">IH", code, len(text)) + text, done=done)


@contextmanager
def served(script: Callable[[Peer], None], *, timeout: float = 5) -> Iterator[Stream]:
    """Run `script` as the server while the context is open; yield the client's end.

    The server hangs up at the end of the script. A failed assertion in it fails the test.
    """
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def run() -> None:
        with theirs:
            try:
                script(Peer(theirs))
            except OSError:
                pass  # the client hung up
            except BaseException as error:  # noqa: BLE001 - raised in the test's thread
                failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    stream = Stream(ours, "the fake server", timeout)
    try:
        yield stream
    finally:
        stream.close()
        thread.join(10)
    if failures:
        raise failures[0]
