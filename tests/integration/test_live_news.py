"""Many who follow one job over WebSockets, with a real Valkey between worker and API."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis import Redis
from websockets.asyncio.client import connect

from lab_backup.catalog.queue import new_job
from support.cluster import Cluster

FOLLOWERS = 150  # more than one process has connections to Redis


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run one API; no worker would take the jobs of the tests."""
    with Cluster() as made:
        made.start("api")
        made.wait_for_apis()
        yield made


def running_job(cluster: Cluster) -> str:
    """Make a job that runs, by its row."""
    with cluster.sessions() as session:
        job = new_job("verify", {}, title="t")
        job.status = "running"
        session.add(job)
        session.commit()
        return str(job.id)


def publish(cluster: Cluster, job: str, news: dict[str, Any]) -> None:
    """Publish news as a worker does."""
    with Redis.from_url(cluster.valkey.url) as redis:
        redis.publish(f"lab-backup:job:{job}", msgspec.json.encode({"job": job, **news}))


def test_all_of_many_followers_hear_the_end_of_a_job(cluster: Cluster) -> None:
    """A hundred and fifty sockets of one process: each gets the state first, then every message in its order, and is closed at the end; other jobs are not heard."""
    token, job, other = cluster.sign_in(), running_job(cluster), running_job(cluster)
    address = f"{cluster.urls[0].replace('http', 'ws', 1)}/ws/jobs/{job}"
    ready = asyncio.Semaphore(0)

    async def follow() -> list[dict[str, Any]]:
        async with connect(address, open_timeout=60) as socket:
            await socket.send(json.dumps({"token": token}))
            first = json.loads(await socket.recv())
            ready.release()
            return [first, *[json.loads(message) async for message in socket]]

    async def run() -> list[list[dict[str, Any]]]:
        async with asyncio.timeout(120):
            tasks = [asyncio.create_task(follow()) for _ in range(FOLLOWERS)]
            for _ in tasks:
                await ready.acquire()
            for number in range(3):
                publish(cluster, other, {"status": "running", "progress": {"done": -1}})
                publish(cluster, job, {"status": "running", "progress": {"done": number}})
            publish(cluster, job, {"status": "succeeded", "progress": {"done": 3}})
            return await asyncio.gather(*tasks)

    for heard in asyncio.run(run()):
        assert [news["progress"].get("done") for news in heard] == [None, 0, 1, 2, 3]


def test_a_socket_does_not_outlive_its_sign_in(cluster: Cluster) -> None:
    """Signed out, the sockets of that session are closed before long, those of another one stay."""
    token, mine = cluster.sign_in(), cluster.sign_in()
    address = f"{cluster.urls[0].replace('http', 'ws', 1)}/ws/jobs"

    async def run() -> None:
        async with asyncio.timeout(60), connect(address) as over, connect(address) as goes_on:
            await over.send(json.dumps({"token": token}))
            await goes_on.send(json.dumps({"token": mine}))
            await asyncio.to_thread(cluster.ask, "POST", "auth/logout", token=token)
            await over.wait_closed()
            assert over.close_code == 4401
            assert json.loads(await goes_on.recv())["status"] == "quiet"

    asyncio.run(run())
