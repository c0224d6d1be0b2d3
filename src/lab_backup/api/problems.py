"""Errors as problem details (RFC 9457). The only place that knows of HTTP statuses for errors."""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from lab_backup.catalog.base import DATABASE_AWAY, TAKEN, UNSTORABLE
from lab_backup.errors import AccessDeniedError, BusyError, LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.repository.errors import DamagedError, WrongKeyError
from lab_backup.security.passwords import WeakPasswordError
from lab_backup.security.tokens import TokenError
from lab_backup.storage.base import StorageError

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger(__name__)


class ForbiddenError(AccessDeniedError):
    """The role does not allow it."""


class TooManyRequestsError(LabBackupError):
    """More requests than are allowed; `retry_after` in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests", hint=f"try again in {retry_after} seconds")
        self.retry_after = retry_after


class Problem(BaseModel):
    """What went wrong: `title` names the kind, `detail` says what happened to which object, `hint` what to do next."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no backup 6f1c5d7e-3f0c-4a53-9d0b-3d1f0d3a5f10"])
    hint: str | None = None
    errors: list[dict[str, str]] | None = None


STATUS: Mapping[type[BaseException], int] = {
    LabBackupError: 502,
    UsageError: 400,
    WeakPasswordError: 422,
    NotFoundError: 404,
    BusyError: 409,
    TargetExistsError: 409,
    AccessDeniedError: 502,  # a host or storage refuses us
    ForbiddenError: 403,
    TokenError: 401,
    WrongKeyError: 409,
    DamagedError: 409,
    StorageError: 502,
    TooManyRequestsError: 429,
}


def status_of(error: BaseException) -> int:
    """Return the status of an error, by the most derived class that is known."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def answer(
    status: int, detail: str, *, hint: str | None = None, headers: Mapping[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """Return an answer that tells of a problem; what is None is left out."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "hint": hint,
        **extra,
    }
    return JSONResponse(
        {key: value for key, value in body.items() if value is not None}, status, dict(headers or {}), MEDIA_TYPE
    )


async def _expected(_: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyRequestsError):
        headers["Retry-After"] = str(error.retry_after)
    return answer(status, str(error), hint=getattr(error, "hint", None), headers=headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Tell which fields are wrong, without what they held: it may be a secret."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return answer(
        422,
        "the request is not valid",
        errors=[{"field": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in found],
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request.app, request.url.path))
    return answer(error.status_code, str(error.detail), headers=headers)


def _methods(app: FastAPI, path: str) -> list[str]:
    """Return all methods of a path, as RFC 9110 wants them in `Allow`: the framework knows those of one of its routes."""
    known = app.openapi()["paths"].items()
    fits = [methods for template, methods in known if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path)]
    return sorted({method.upper() for methods in fits for method in methods})


async def _away(_: Request, error: Exception) -> JSONResponse:
    log.error("the database: %s", type(error).__name__)
    return answer(
        503,
        "the database did not answer",
        hint="try again; if it stays so, look at the service's log",
        headers={"Retry-After": "5"},
    )


async def _unstorable(_: Request, error: Exception) -> JSONResponse:
    del error  # it holds the value
    return answer(422, "a value cannot be stored or looked for", hint="texts hold no NUL, and numbers have limits")


async def _taken(_: Request, error: Exception) -> JSONResponse:
    log.info("a row was refused: %s", type(error).__name__)
    return answer(
        409, "somebody else has just made one of that name, or still needs this one", hint="look, then try again"
    )


async def _fault(request: Request, error: Exception) -> JSONResponse:
    log.error("a fault in lab-backup itself", exc_info=error, extra={"path": request.url.path})
    return answer(
        500,
        f"a fault in Lab Backup itself: {type(error).__name__}",
        hint="the service's log has the details; please report it",
    )


def install(app: FastAPI) -> None:
    """Let `app` answer every error so."""
    app.add_exception_handler(LabBackupError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(TAKEN, _taken)
    for away in DATABASE_AWAY:
        app.add_exception_handler(away, _away)
    for unstorable in UNSTORABLE:
        app.add_exception_handler(unstorable, _unstorable)
    app.add_exception_handler(Exception, _fault)
    described = app.openapi

    def document() -> dict[str, Any]:
        found = described()
        found["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return found

    app.openapi = document  # type: ignore[method-assign]  # the way that FastAPI documents


HEADERS: Mapping[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait"}},
}
# A `model` would be described as plain JSON, which problems are not sent as.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "headers": HEADERS.get(status, {}),
    }
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503)
}
