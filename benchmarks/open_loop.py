"""Requests at moments that were decided before, whatever the answers do (open loop): a program of its own, so that it and the service do not share a lock.

    python benchmarks/open_loop.py '{"addresses": [["127.0.0.1", 8000]], "token": "…", "kinds": {"list": ["/api/v1/jobs"]}, "rate": 200, "seconds": 60}'

Each request's time counts from the moment at which it was to be sent, so waiting for a connection is part of it. Prints the milliseconds of each
kind as JSON. HTTP/1.1 by hand over connections that stay: a client library takes as long as the service itself for such answers.
"""

import asyncio
import json
import random
import sys
import time
from typing import Any

WAIT_SECONDS = 30.0
WARM_SECONDS = 3.0
IDLE_SECONDS = 2.0  # servers close connections after five


class Connections:
    """Connections to one address, as many as are in use at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, head: bytes) -> int:
        """Send a request and return the status, when all of the answer is there."""
        while self._free and self._free[0][0] < time.perf_counter() - IDLE_SECONDS:
            self._free.pop(0)[2].close()
        reader, writer = self._free.pop()[1:] if self._free else await asyncio.open_connection(self._host, self._port)
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        self._free.append((time.perf_counter(), reader, writer))
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        """Close what is left."""
        for _, _, writer in self._free:
            writer.close()


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Ask as the plan says; return the times of each kind, and how many were answered otherwise than by 200."""
    places = [Connections(*address) for address in plan["addresses"]]
    heads = {
        kind: [
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {plan['token']}\r\n\r\n".encode()
            for path in paths
        ]
        for kind, paths in plan["kinds"].items()
    }
    choose = random.Random(1)
    times: dict[str, list[float]] = {kind: [] for kind in heads}
    wrong: list[str] = []

    async def one(number: int, due: float, *, counted: bool) -> None:
        kind = choose.choice(list(heads))
        try:
            status = await asyncio.wait_for(places[number % len(places)].ask(choose.choice(heads[kind])), WAIT_SECONDS)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            wrong.append(f"{kind}: {type(error).__name__}")
            return
        if status != 200:
            wrong.append(f"{kind}: {status}")
        elif counted:
            times[kind].append((time.perf_counter() - due) * 1000)

    async with asyncio.TaskGroup() as group:
        start = time.perf_counter() + 0.1
        for number in range(int((WARM_SECONDS + plan["seconds"]) * plan["rate"])):
            due = start + number / plan["rate"]
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(number, due, counted=number >= WARM_SECONDS * plan["rate"]))
    for place in places:
        place.close()
    return {"times": times, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
