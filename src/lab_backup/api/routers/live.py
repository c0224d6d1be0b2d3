"""News of jobs over WebSockets. The first message is the access token, which so never stands in an address that is logged."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import msgspec
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from lab_backup.api.access import Actor, actor_of
from lab_backup.api.context import Context, get_context
from lab_backup.api.schemas.notifications import NotificationShown
from lab_backup.catalog.queries import inbox_since
from lab_backup.catalog.work import ENDED, Job
from lab_backup.errors import LabBackupError
from lab_backup.security.tokens import TokenError

router = APIRouter()

UNAUTHORIZED, MISSING, AWAY = 4401, 4404, 1013
PATIENCE = 10.0  # seconds to send the token
QUIET = 15.0  # seconds after which a message goes out anyway, so that proxies keep the connection
CHANNEL = "lab-backup:job:"
NEWS = "lab-backup:news"


async def _admitted(socket: WebSocket, context: Context) -> Actor | None:
    await socket.accept()
    try:
        first = await asyncio.wait_for(socket.receive_json(), PATIENCE)
        async with context.sessions() as session:
            return await actor_of(str(first["token"]), context, session)
    except (TimeoutError, ValueError, KeyError, TypeError, LabBackupError, TokenError):
        await socket.close(UNAUTHORIZED, 'the first message must be {"token": …} with a valid access token')
        return None


@router.websocket("/ws/jobs/{job_id}")
async def job_news(socket: WebSocket, job_id: UUID) -> None:
    """Send how far a job is, until it has ended."""
    context = get_context(socket)
    with suppress(WebSocketDisconnect):
        if await _admitted(socket, context):
            await _follow(socket, context, f"{CHANNEL}{job_id}", job_id)


@router.websocket("/ws/jobs")
async def all_news(socket: WebSocket) -> None:
    """Send how far all jobs are."""
    context = get_context(socket)
    with suppress(WebSocketDisconnect):
        if await _admitted(socket, context):
            await _follow(socket, context, f"{CHANNEL}*", None)


@router.websocket("/ws/notifications")
async def inbox_news(socket: WebSocket) -> None:
    """Send what is put into the inbox of who listens, as it comes."""
    context = get_context(socket)
    with suppress(WebSocketDisconnect):
        actor = await _admitted(socket, context)
        if actor is None:
            return
        try:
            async with context.redis.pubsub(ignore_subscribe_messages=True) as news:
                await news.subscribe(NEWS)
                gone = asyncio.create_task(_gone(socket))
                try:
                    await _tell(socket, context, news, actor.user, gone)
                finally:
                    gone.cancel()
        except (RedisError, OSError):
            await socket.close(AWAY, "the service's Redis is away: connect again")


async def _tell(socket: WebSocket, context: Context, news: PubSub, user: UUID, gone: "asyncio.Task[None]") -> None:
    since = datetime.now(UTC)
    while not gone.done():
        message = await news.get_message(timeout=QUIET)
        if message is None:
            await socket.send_json({"status": "quiet"})
            continue
        async with context.sessions() as session:
            fresh = list(await session.scalars(inbox_since(user, since)))
        for row in fresh:
            since = max(since, row.created_at)
            await socket.send_text(NotificationShown.model_validate(row).model_dump_json())


async def _state(context: Context, job_id: UUID) -> dict[str, object] | None:
    async with context.sessions() as session:
        job = await session.get(Job, job_id)
    return (
        None
        if job is None
        else {"job": str(job.id), "status": job.status, "progress": job.progress, "error": job.error}
    )


async def _follow(socket: WebSocket, context: Context, channel: str, job_id: UUID | None) -> None:
    async with context.redis.pubsub(ignore_subscribe_messages=True) as news:
        try:
            await (news.psubscribe(channel) if job_id is None else news.subscribe(channel))
            if job_id is not None:
                state = await _state(context, job_id)
                if state is None:
                    await socket.close(MISSING, "there is no such job")
                    return
                await socket.send_json(state)
                if state["status"] in ENDED:
                    await socket.close()
                    return
            gone = asyncio.create_task(_gone(socket))
            try:
                await _pass_on(socket, context, news, job_id, gone)
            finally:
                gone.cancel()
        except (RedisError, OSError):
            await socket.close(AWAY, "the service's Redis is away: connect again")


async def _pass_on(
    socket: WebSocket, context: Context, news: PubSub, job_id: UUID | None, gone: "asyncio.Task[None]"
) -> None:
    while not gone.done():
        message = await news.get_message(timeout=QUIET)
        if message is None:
            state = await _state(context, job_id) if job_id is not None else {"status": "quiet"}
        else:
            state = msgspec.json.decode(message["data"])
        await socket.send_json(state)
        if job_id is not None and state and state["status"] in ENDED:
            await socket.close()
            return


async def _gone(socket: WebSocket) -> None:
    """Return when the other side has left."""
    with suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()
