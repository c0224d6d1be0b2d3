"""Exact numbers of bytes from and to a socket, before a deadline."""

import socket
import ssl
import struct
import time

from lab_backup.blocks import Buffer
from lab_backup.errors import AccessDeniedError
from lab_backup.nbd.address import Address, UnixAddress
from lab_backup.nbd.errors import NbdConnectionError
from lab_backup.units import KiB

SKIP_BUFFER = 64 * KiB
"""What nobody wants to see is read through a buffer of this size."""


_TIMEVAL = struct.Struct("ll")  # struct timeval: seconds, microseconds


class Stream:
    """A connected socket. Every failure is an NbdConnectionError, after which only `close` makes sense.

    An exchange may take as long as `expect` allows, and at most one timeout more where the peer dribbles.
    """

    def __init__(self, sock: socket.socket, peer: str, timeout: float) -> None:
        """Take over `sock`; `peer` names the server in errors, `timeout` (seconds) bounds every wait."""
        self._socket = sock
        self._peer = peer
        self._timeout = timeout
        self._patience = 0.0
        self._deadline = 0.0
        # The kernel waits for all the bytes of a call, with its own timeout: Python would come back for every piece, and
        # queue for the interpreter's lock each time. TLS does not know this.
        self._flags: int = socket.MSG_WAITALL
        sock.settimeout(None)
        self.expect()

    @classmethod
    def connect(cls, address: Address, timeout: float) -> "Stream":
        """Connect to `address`. Raises AccessDeniedError where a unix socket is not ours to use."""
        try:
            if isinstance(address, UnixAddress):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.settimeout(timeout)
                    sock.connect(str(address.path))
                except BaseException:
                    sock.close()
                    raise
            else:
                sock = socket.create_connection((address.host, address.port), timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except PermissionError as error:
            raise AccessDeniedError(
                f"no permission to connect to the NBD socket {address}",
                hint="run as the user that owns the socket, or as root",
            ) from error
        except OSError as error:
            raise NbdConnectionError(
                f"cannot connect to the NBD server at {address}: {_reason(error)}",
                hint="check that the server runs and that a firewall lets the connection through",
            ) from error
        return cls(sock, str(address), timeout)

    def expect(self, seconds: float | None = None) -> None:
        """Let the exchange that begins now take `seconds`; by default the stream's timeout."""
        patience = max(self._timeout if seconds is None else seconds, 0.001)  # 0 would mean for ever
        if patience != self._patience:
            self._patience = patience
            if self._flags:
                limit = _TIMEVAL.pack(int(patience), int(patience % 1 * 1_000_000))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            else:
                self._socket.settimeout(patience)
        self._deadline = time.monotonic() + patience

    def secure(self, context: ssl.SSLContext, hostname: str) -> None:
        """Speak TLS from here on, with a server whose certificate holds `hostname`. Lets ssl.SSLError through."""
        self._flags = 0
        self._socket.settimeout(self._patience)
        self._socket = context.wrap_socket(self._socket, server_hostname=hostname)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`."""
        done, size = 0, len(view)
        receive = self._socket.recv_into
        while done < size:
            try:
                count = receive(view[done:] if done else view, 0, self._flags)
            except OSError as error:
                raise self._lost(error) from error
            if count == 0:
                raise NbdConnectionError(f"the NBD server at {self._peer} closed the connection")
            done += count
            if done < size and time.monotonic() > self._deadline:
                raise self._slow()

    def receive(self, count: int) -> bytes:
        """Return the next `count` bytes; the caller has checked that they fit into memory."""
        buffer = bytearray(count)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def skip(self, count: int) -> None:
        """Throw the next `count` bytes away."""
        scratch = memoryview(bytearray(min(count, SKIP_BUFFER)))
        while count:
            part = scratch[:count]
            self.receive_into(part)
            count -= len(part)

    def send(self, head: bytes, payload: Buffer = b"") -> None:
        """Send `head` and `payload`."""
        for part in (head, payload):
            left = memoryview(part)
            while left:
                try:
                    count = self._socket.send(left)
                except OSError as error:
                    raise self._lost(error) from error
                left = left[count:]
                if left and time.monotonic() > self._deadline:
                    raise self._slow()

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _lost(self, error: OSError) -> NbdConnectionError:
        if isinstance(error, TimeoutError | BlockingIOError):
            return self._slow()
        return NbdConnectionError(f"lost the connection to the NBD server at {self._peer}: {_reason(error)}")

    def _slow(self) -> NbdConnectionError:
        return NbdConnectionError(
            f"the NBD server at {self._peer} did not answer within {self._patience:.0f} s",
            hint="check the load of the host and of its storage",
        )


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error)
