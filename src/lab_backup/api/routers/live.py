"""News of jobs over WebSockets. The first message is the access token, which so never stands in an address that is logged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from lab_backup.api.access import Actor, actor_of, is_still
from lab_backup.api.context import Context, get_context
from lab_backup.api.news import INBOXES, JOBS, Follower
from lab_backup.api.schemas.notifications import NotificationShown
from lab_backup.catalog.queries import inbox_since
from lab_backup.catalog.work import ENDED, Job
from lab_backup.errors import LabBackupError
from lab_backup.security.tokens import TokenError

router = APIRouter()

UNAUTHORIZED, MISSING, AWAY = 4401, 4404, 1013
PATIENCE = 10.0  # seconds to send the token
REACHED = 5.0  # seconds for Redis to be there
QUIET = 15.0  # seconds after which a message goes out anyway, so that proxies keep the connection, and after which the sign-in is looked at again


@dataclass(frozen=True, slots=True)
class Listener:
    """Somebody who listens, and by which token."""

    socket: WebSocket
    context: Context
    actor: Actor
    token: str


async def _admitted(socket: WebSocket) -> Listener | None:
    context = get_context(socket)
    await socket.accept()
    try:
        first = await asyncio.wait_for(socket.receive_json(), PATIENCE)
        token = str(first["token"])
        async with context.sessions() as session:
            return Listener(socket, context, await actor_of(token, context, session), token)
    except (TimeoutError, ValueError, KeyError, TypeError, LabBackupError, TokenError):
        await socket.close(UNAUTHORIZED, 'the first message must be {"token": …} with a valid access token')
        return None


@router.websocket("/ws/jobs/{job_id}")
async def job_news(socket: WebSocket, job_id: UUID) -> None:
    """Send how far a job is, until it has ended."""
    with suppress(WebSocketDisconnect):
        listener = await _admitted(socket)
        if listener is None:
            return
        async with _following(listener, f"{JOBS}{job_id}") as follower:
            state = await _state(listener.context, job_id)
            if state is None:
                await socket.close(MISSING, "there is no such job")
                return
            await socket.send_json(state)
            if state["status"] in ENDED:
                await socket.close()
                return
            await _pass_on(listener, follower, job_id)


@router.websocket("/ws/jobs")
async def all_news(socket: WebSocket) -> None:
    """Send how far all jobs are."""
    with suppress(WebSocketDisconnect):
        listener = await _admitted(socket)
        if listener is not None:
            async with _following(listener, JOBS) as follower:
                await _pass_on(listener, follower, None)


@router.websocket("/ws/notifications")
async def inbox_news(socket: WebSocket) -> None:
    """Send what is put into the inbox of who listens, as it comes."""
    with suppress(WebSocketDisconnect):
        listener = await _admitted(socket)
        if listener is not None:
            async with _following(listener, INBOXES) as follower:
                await _tell(listener, follower)


@asynccontextmanager
async def _following(listener: Listener, channel: str) -> AsyncIterator[Follower]:
    """Follow a channel until the other side leaves. Where nothing can be heard any more, say so."""
    with listener.context.news.follow(channel) as follower:
        if not await listener.context.news.reachable(REACHED):
            follower.end()
        gone = asyncio.create_task(_until_gone(listener.socket, follower))
        try:
            yield follower
        finally:
            left = gone.done()
            gone.cancel()
        if follower.is_over() and not left:
            await listener.socket.close(AWAY, "the service's Redis is away, or this connection too slow: connect again")


async def _until_gone(socket: WebSocket, follower: Follower) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()
    follower.end()


async def _still_admitted(listener: Listener) -> bool:
    """Look whether the sign-in has ended meanwhile; if so, close."""
    async with listener.context.sessions() as session:
        if await is_still(listener.actor, listener.token, listener.context, session):
            return True
    await listener.socket.close(UNAUTHORIZED, "the sign-in has ended")
    return False


async def _pass_on(listener: Listener, follower: Follower, job_id: UUID | None) -> None:
    socket = listener.socket
    while not follower.is_over():
        message = await follower.next(QUIET)
        if message is not None:
            await socket.send_text(message.text)
            ended = message.last
        elif follower.is_over() or not await _still_admitted(listener):
            return
        else:
            state = {"status": "quiet"} if job_id is None else await _state(listener.context, job_id)
            await socket.send_json(state)
            ended = state is None or state["status"] in ENDED
        if ended and job_id is not None:
            await socket.close()
            return


async def _tell(listener: Listener, follower: Follower) -> None:
    since = datetime.now(UTC)
    while not follower.is_over():
        message = await follower.next(QUIET)
        if message is None:
            if follower.is_over() or not await _still_admitted(listener):
                return
            await listener.socket.send_json({"status": "quiet"})
            continue
        async with listener.context.sessions() as session:
            fresh = list(await session.scalars(inbox_since(listener.actor.user, since)))
        for row in fresh:
            since = max(since, row.created_at)
            await listener.socket.send_text(NotificationShown.model_validate(row).model_dump_json())


async def _state(context: Context, job_id: UUID) -> dict[str, object] | None:
    async with context.sessions() as session:
        job = await session.get(Job, job_id)
    return (
        None
        if job is None
        else {"job": str(job.id), "status": job.status, "progress": job.progress, "error": job.error}
    )
