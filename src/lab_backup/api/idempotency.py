"""`Idempotency-Key`: a POST that is sent again because its answer was lost is answered as the first one was, and not done again.

As the IETF's draft of that header has it. Answers are kept for a day in Redis, encrypted, for whoever holds the same account's token.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from fastapi import Request, Response
from redis.exceptions import RedisError

from lab_backup.api import problems
from lab_backup.api.access import actor_of
from lab_backup.api.context import Context
from lab_backup.catalog.base import DatabaseError
from lab_backup.security.sealed import SealError, seal, unseal
from lab_backup.security.tokens import TokenError

HEADER = "Idempotency-Key"
KEPT_SECONDS = 24 * 3600
WORKING_SECONDS = 300
MOST_BYTES = 8 * 1024
MOST_KEYS = 2000  # of an account, in a day
LONGEST = 200
_WORKING = b"working"


class _Kept(msgspec.Struct):
    """An answer, and the hash of the request that it was to."""

    request: str
    status: int
    kind: str
    body: str


async def once(request: Request, call: Callable[[Request], Awaitable[Response]], context: Context) -> Response:
    """Answer a request that may have been answered before."""
    key = request.headers.get(HEADER, "")
    who = await _account(request, context) if request.method == "POST" and key else None
    if who is None:
        return await call(request)
    if len(key) > LONGEST or not key.isprintable():
        return problems.answer(400, f"the header {HEADER} has at most {LONGEST} printable characters")
    body = await request.body()
    asked = hashlib.sha256(request.url.path.encode() + b"\0" + body).hexdigest()
    place = f"lab-backup:once:{hashlib.sha256(f'{who} {key}'.encode()).hexdigest()}"
    try:
        if not await _has_room(context, who):
            return await call(request)
        if not await context.redis.set(place, _WORKING, nx=True, ex=WORKING_SECONDS):
            return _again(await context.redis.get(place), asked, place, context)
    except (RedisError, OSError):
        return await call(request)
    try:
        response = await call(request)
        return await _keep(response, asked, place, context)
    except BaseException:
        with suppress(RedisError, OSError):
            await context.redis.delete(place)
        raise


async def _account(request: Request, context: Context) -> str | None:
    """Return whose request it is: keys of one account mean nothing to another. None where the token is not valid: such a request gets no further anyway."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    try:
        async with context.sessions() as session:
            actor = await actor_of(token, context, session)
    except (TokenError, DatabaseError):
        return None
    # What an account is answered depends on its role as well, and tokens may have less than their user.
    return f"{actor.user} {actor.role}"


async def _has_room(context: Context, who: str) -> bool:
    """Whether the account has not used up what is kept for it: Redis has little memory, and holds the queue too."""
    counter = f"lab-backup:once-count:{hashlib.sha256(who.encode()).hexdigest()}"
    count = await context.redis.incr(counter)
    if count == 1:
        await context.redis.expire(counter, KEPT_SECONDS)
    return int(count) <= MOST_KEYS


def _again(kept: bytes | str | None, asked: str, place: str, context: Context) -> Response:
    kept = kept.encode() if isinstance(kept, str) else kept
    if kept is None or kept == _WORKING:
        return problems.answer(
            409, "the first request with this key is not answered yet", hint="wait, then send it again"
        )
    try:
        before = msgspec.json.decode(unseal(context.master_key, kept.decode(), place=place), type=_Kept)
    except (SealError, msgspec.MsgspecError, UnicodeDecodeError):
        return problems.answer(409, "what was answered to this key cannot be read", hint="send it with another key")
    if before.request != asked:
        return problems.answer(
            422,
            f"the {HEADER} was used for another request",
            hint="use a new one for each request that is not a repetition",
        )
    return Response(before.body, before.status, {"Idempotent-Replayed": "true"}, before.kind)


async def _keep(response: Response, asked: str, place: str, context: Context) -> Response:
    """Keep an answer that stands; what failed or was refused may be tried again with the same key."""
    stream = getattr(response, "body_iterator", None)  # what the framework hands on from further in
    parts = [response.body] if stream is None else [part async for part in stream]
    body = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts)
    kind = response.headers.get("content-type", "application/json")
    whole = Response(body, response.status_code, dict(response.headers))
    with suppress(RedisError, OSError, UnicodeDecodeError):
        if not 200 <= response.status_code < 300 or len(body) > MOST_BYTES:  # what was refused may be asked again
            await context.redis.delete(place)
        else:
            answer = msgspec.json.encode(_Kept(asked, response.status_code, kind, body.decode())).decode()
            await context.redis.set(place, seal(context.master_key, answer, place=place), ex=KEPT_SECONDS)
    return whole
