"""What every request needs: connections and keys, made when the API starts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from limits import RateLimitItem
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from lab_backup.api.news import News
from lab_backup.catalog.base import AsyncSession, AsyncSessions


@dataclass(frozen=True, slots=True)
class Context:
    """Connections, the three keys (of access tokens, of the audit chain, of credentials), the folder for indexes, how many requests one may send, and what workers publish."""

    sessions: AsyncSessions
    redis: Redis
    limiter: MovingWindowRateLimiter
    token_key: bytes
    audit_key: bytes
    master_key: bytes
    cache_directory: Path
    requests: RateLimitItem
    news: News


def get_context(connection: HTTPConnection) -> Context:
    """Return the context of the running application."""
    context: Context = connection.app.state.context
    return context


InContext = Annotated[Context, Depends(get_context)]


async def get_session(context: InContext) -> AsyncIterator[AsyncSession]:
    """Give a request its transaction. It is committed before the answer goes out, so that nobody hears of what then failed."""
    async with context.sessions() as session:
        yield session
        await session.commit()


Db = Annotated[AsyncSession, Depends(get_session, scope="function")]
