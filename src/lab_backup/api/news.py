"""What workers publish in Redis, heard once by this process and given to all who follow it here.

A subscription for each follower would take a connection to Redis for each, of which there are few.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lab_backup.catalog.work import ENDED

JOBS = "lab-backup:job:"
INBOXES = "lab-backup:news"
AGAIN_SECONDS = 1.0  # between two tries to reach Redis
MOST = 256  # messages that wait for one follower; who is slower than that has to look again


class _Head(msgspec.Struct):
    status: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """Something that was published, as text; `last` where nothing can follow."""

    text: str
    last: bool


class Follower:
    """One who follows a job, all jobs, or inboxes."""

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self._something = asyncio.Event()
        self._over = False

    def is_over(self) -> bool:
        """Whether nothing comes any more: Redis is away, or this one was too slow, or left."""
        return self._over

    def give(self, message: Message) -> None:
        """Let it have a message."""
        if len(self._waiting) >= MOST:
            self.end()
        self._waiting.append(message)
        self._something.set()

    def end(self) -> None:
        """Let it hear no more."""
        self._over = True
        self._something.set()

    async def next(self, seconds: float) -> Message | None:
        """Return the next message; None where none came for so long, or it is over."""
        try:
            await asyncio.wait_for(self._something.wait(), seconds)
        except TimeoutError:
            return None
        if self._over:
            return None
        message = self._waiting.popleft()
        if not self._waiting:
            self._something.clear()
        return message


class News:
    """The one subscription of this process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._followers: dict[str, set[Follower]] = {}
        self._heard = asyncio.Event()

    async def listen(self) -> None:
        """Hear what is published, until cancelled. While Redis is away nobody can follow."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.psubscribe(f"{JOBS}*", INBOXES)
                    self._heard.set()
                    while True:
                        message = await subscription.get_message(timeout=None)
                        if message is not None:
                            self._give(message["channel"].decode(), message["data"])
            except (RedisError, OSError):
                self._heard.clear()
                for followers in self._followers.values():
                    for follower in followers:
                        follower.end()
                await asyncio.sleep(AGAIN_SECONDS)

    async def reachable(self, seconds: float) -> bool:
        """Whether something would be heard, now or within so long."""
        try:
            await asyncio.wait_for(self._heard.wait(), seconds)
        except TimeoutError:
            return False
        return True

    @contextmanager
    def follow(self, channel: str) -> Iterator[Follower]:
        """Give what is published in a channel from now on; `JOBS` alone means all jobs."""
        follower = Follower()
        self._followers.setdefault(channel, set()).add(follower)
        try:
            yield follower
        finally:
            others = self._followers[channel]
            others.discard(follower)
            if not others:
                del self._followers[channel]

    def _give(self, channel: str, data: bytes) -> None:
        to = [*self._followers.get(channel, ())]
        if channel.startswith(JOBS):
            to += self._followers.get(JOBS, ())
        if not to:
            return
        last = bool(data) and msgspec.json.decode(data, type=_Head).status in ENDED
        message = Message(data.decode(), last)
        for follower in to:
            follower.give(message)
