"""The application, put together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string
from redis.asyncio import Redis
from starlette.datastructures import Headers
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab_backup import __version__
from lab_backup.api import pages, problems
from lab_backup.api.context import Context
from lab_backup.api.idempotency import HEADER as IDEMPOTENCY_KEY
from lab_backup.api.idempotency import once
from lab_backup.api.news import News
from lab_backup.api.routers import (
    auth,
    backups,
    configuration,
    files,
    hosts,
    jobs,
    live,
    notifications,
    overview,
    people,
    schedules,
    service,
    storage,
)
from lab_backup.catalog.base import connect_async
from lab_backup.security.sealed import read_or_make_key
from lab_backup.settings import Settings, read_settings

PREFIX = "/api/v1"
MOST_BYTES = 1024 * 1024  # of a request's body

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


def create_app(settings: Settings) -> FastAPI:
    """Return the application for these settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine, sessions = connect_async(settings.database_url)
        redis = Redis.from_url(settings.redis_url)
        secrets = settings.secrets_directory
        news = News(redis)
        app.state.context = Context(
            sessions=sessions,
            redis=redis,
            limiter=MovingWindowRateLimiter(
                storage_from_string(f"async+{_limits_url(settings.redis_url)}", implementation="redispy")
            ),
            token_key=read_or_make_key(secrets / "tokens.key"),
            audit_key=read_or_make_key(secrets / "audit.key"),
            master_key=read_or_make_key(secrets / "master.key"),
            cache_directory=settings.cache_directory,
            requests=RateLimitItemPerMinute(settings.requests_per_minute),
            news=news,
        )
        listening = asyncio.create_task(news.listen())
        try:
            yield
        finally:
            listening.cancel()
            await redis.aclose()
            await engine.dispose()

    app = FastAPI(
        title="Lab Backup",
        version=__version__,
        description="Backups of KVM virtual machines and Podman containers.",
        license_info={"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=problems.PROBLEMS,
    )
    for module in (
        auth,
        people,
        hosts,
        storage,
        schedules,
        backups,
        files,
        jobs,
        notifications,
        overview,
        service,
        configuration,
        live,
    ):
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(overview.root)
    pages.install(app)
    problems.install(app)
    app.add_middleware(Guard)
    return app


def _limits_url(redis_url: str) -> str:
    return "redis+" + redis_url if redis_url.startswith("unix://") else redis_url


class Guard:
    """Refuses bodies beyond all reason, and sends the headers that keep a browser from being used against its owner."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._repeatable = BaseHTTPMiddleware(app, dispatch=_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message.get("headers", ())}
                more = [header for header in RAW_HEADERS if header[0] not in own]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        chunked = "chunked" in headers.get("transfer-encoding", "")
        app = self._app
        if chunked or not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            app = problems.answer(413, "the request is too large, or does not say how large it is")
        elif scope["method"] == "POST" and IDEMPOTENCY_KEY in headers:
            app = self._repeatable
        await app(scope, receive, send_with_headers)


async def _once(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    return await once(request, call, request.app.state.context)


def from_environment() -> FastAPI:
    """Return the application for the settings of this process' environment, for a server that is started by hand."""
    return create_app(read_settings())
