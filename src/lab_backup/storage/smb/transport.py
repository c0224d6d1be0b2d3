"""The TCP transport below smbprotocol ([MS-SMB2] 2.1), with a source address and a bound to every wait.

smbprotocol's own binds to no address, waits without end for a server that takes no data, and uses select(2), which
fails from file descriptor 1024 on.
"""

import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

from smbprotocol.connection import Connection

_HEADER = struct.Struct(">I")
_MAX_MESSAGE = 0xFFFFFF  # three bytes of length


class Transport:
    """A TCP connection to `host`; `timeout` bounds, in seconds, the connecting and each wait for the server to take data."""

    def __init__(self, host: str, port: int, *, timeout: float, source_address: str | None = None) -> None:
        """Remember where to; `connect` does it."""
        self.connected = False
        self._address = (host, port)
        self._timeout = timeout
        self._source = (source_address, 0) if source_address else None
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._receiving = threading.RLock()

    def connect(self) -> None:
        """Connect. Raises OSError."""
        connection = socket.create_connection(self._address, self._timeout, self._source)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeout * 1000))
        self._socket = connection
        self.connected = True

    def send(self, packet: Any) -> None:
        """Send a message whole, as bytes or as smbprotocol's own structure (an encrypted one).

        Raises OSError, after which the connection is of no more use.
        """
        message: bytes = packet if isinstance(packet, bytes) else packet.pack()
        if len(message) > _MAX_MESSAGE:
            raise ValueError(f"a message of {len(message)} bytes does not fit one packet")
        with self._sending:
            if self._socket is None or not self.connected:
                raise ConnectionResetError
            try:
                self._socket.sendall(_HEADER.pack(len(message)) + message)
            except OSError:
                self.connected = False  # part of a message may be out, so nothing may follow
                raise

    def recv(self, timeout: float) -> bytes:
        """Return the next message, or nothing where the connection ended. Raises TimeoutError after `timeout` idle seconds."""
        with self._receiving:
            header = self._read(_HEADER.size, timeout)
            body = self._read(_HEADER.unpack(header)[0] & _MAX_MESSAGE, timeout) if header else b""
        if not body:
            self.close()
        return bytes(body)

    def close(self) -> None:
        """Let go of the connection. Whoever waits in `recv` comes back with nothing."""
        self.connected = False
        if self._socket is not None:
            with suppress(OSError):  # it may have ended already
                self._socket.shutdown(socket.SHUT_RDWR)
            with self._receiving:
                self._socket.close()

    def _read(self, length: int, timeout: float) -> bytearray:
        buffer = bytearray(length)
        view = memoryview(buffer)
        if self._socket is None:
            return bytearray()
        try:
            waiting = select.poll()
            waiting.register(self._socket, select.POLLIN)
            while view:
                if not waiting.poll(timeout * 1000):
                    raise TimeoutError
                count = self._socket.recv_into(view)
                if count == 0:
                    return bytearray()
                view = view[count:]
        except TimeoutError:
            raise
        except (OSError, ValueError):  # ValueError: closed by another thread
            return bytearray()
        return buffer


class BoundConnection(Connection):  # type: ignore[misc]  # smbprotocol has no types
    """A connection of smbprotocol that waits at most `timeout` seconds for each answer, and follows no link for the server."""

    def __init__(
        self, host: str, port: int, *, client: object, timeout: float, source_address: str | None, require_signing: bool
    ) -> None:
        """Prepare; `client` is the UUID that names this client to the server."""
        self._timeout = timeout
        self._transport = Transport(host, port, timeout=timeout, source_address=source_address)
        super().__init__(client, host, port, require_signing=require_signing)

    @property
    def transport(self) -> Transport:
        """Our own; the one that smbprotocol makes is dropped."""
        return self._transport

    @transport.setter
    def transport(self, _: object) -> None:
        return

    def receive(
        self,
        request: object,
        wait: bool = True,  # noqa: FBT001, FBT002  # smbprotocol's own signature
        timeout: float | None = None,
        resolve_symlinks: bool = True,  # noqa: FBT001, FBT002  # the same
    ) -> object:
        """Return the answer to `request`. A symbolic link is an error: what it points to is not ours."""
        del resolve_symlinks
        return super().receive(request, wait, timeout or self._timeout, resolve_symlinks=False)
