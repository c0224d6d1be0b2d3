"""Many who follow one job over WebSockets: a program of its own, that tells how late news come.

    python benchmarks/followers.py '{"urls": ["ws://127.0.0.1:8000/api/v1/ws/jobs/ID"], "token": "…", "count": 500, "news": 40}'

Each message carries `sent`, the moment (CLOCK_MONOTONIC, which all processes share) at which it was published. Says `ready` when all follow, and
ends when each has heard of the end; prints milliseconds and how many messages each one got, as JSON.
"""

import asyncio
import json
import resource
import sys
import time
from typing import Any

from websockets.asyncio.client import connect

WAIT_SECONDS = 120.0


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Follow as the plan says."""
    late: list[float] = []
    got: list[int] = []
    opened = asyncio.Semaphore(20)
    ready = asyncio.Semaphore(0)

    async def follow(url: str) -> None:
        async with opened:
            socket = await connect(url, open_timeout=WAIT_SECONDS, compression=None, ping_interval=None)
            await socket.send(json.dumps({"token": plan["token"]}))
            await socket.recv()  # how far the job is
        ready.release()
        count = 0
        async for message in socket:
            news = json.loads(message)
            if "sent" in news:
                late.append((time.monotonic() - news["sent"]) * 1000)
                count += 1
        got.append(count)

    async with asyncio.timeout(WAIT_SECONDS * 2), asyncio.TaskGroup() as group:
        for number in range(plan["count"]):
            group.create_task(follow(plan["urls"][number % len(plan["urls"])]))
        for _ in range(plan["count"]):
            await ready.acquire()
        print("ready", flush=True)
    return {"late": late, "got": got}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
