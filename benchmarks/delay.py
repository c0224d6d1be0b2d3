"""A relay before a server on this machine that delivers everything later: a long way to the storage, with all of its bandwidth.

    python delay.py PORT MILLISECONDS      prints the port it listens on; relays until its input ends

Half of the time is added each way, so that a question and its answer take MILLISECONDS longer.
"""

import contextlib
import queue
import socket
import sys
import threading
import time

PIECE = 256 * 1024
WAITING = 256  # pieces under way on one connection: 64 MiB, far more than a fast line holds in the time


def relay(source: socket.socket, target: socket.socket, delay: float) -> None:
    """Deliver what comes from `source` to `target`, each piece `delay` seconds after it came."""
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(WAITING)

    def deliver() -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = under_way.get()
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    threading.Thread(target=deliver, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE):
            under_way.put((time.monotonic() + delay, data))
    under_way.put((time.monotonic() + delay, b""))


def serve(port: int, delay: float) -> None:
    """Relay connections until the process ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=relay, args=(source, target, delay), daemon=True).start()


if __name__ == "__main__":
    threading.Thread(target=serve, args=(int(sys.argv[1]), float(sys.argv[2]) / 2000), daemon=True).start()
    sys.stdin.read()
