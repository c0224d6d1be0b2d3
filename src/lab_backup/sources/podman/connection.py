"""A connection to a Podman service.

podman-py carries the requests; its objects are not used: they hold whole archives in memory, and differ from what older
services answer. See `docs/decisions` for what it lacks and how that is filled here.
"""

import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests
import urllib3
from podman.api.client import APIClient
from podman.errors import APIError

from lab_backup.nbd.tunnel import SshTunnel
from lab_backup.sources.podman.address import Service, SshService, TcpService, UnixService, parse
from lab_backup.sources.podman.errors import (
    PodmanAccessError,
    PodmanError,
    PodmanUnreachableError,
    UnsupportedVersionError,
    refusal,
)
from lab_backup.units import KiB

CONNECT_TIMEOUT = 15.0
"""Seconds to reach the service; a socket-activated one starts first."""

ANSWER_TIMEOUT = 120.0
"""Seconds without a byte of an answer. A service under load takes seconds for what is otherwise immediate."""

STREAM_CHUNK = 256 * KiB
"""Bytes read at once from a stream."""

OLDEST = (4, 0)
"""The oldest API that this speaks: netavark's networks came with it. Podman 4.3, Debian 12's, is the oldest that is tested."""

_FIRST = "4.0.0"  # asked with, before the service's own version is known

_FAILURES = (APIError, requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class Podman:
    """A connection; a context manager. Not thread-safe."""

    def __init__(self, uri: str) -> None:
        """Prepare a connection to the service at `uri` (see `address.parse`). Raises UsageError."""
        self.uri = uri
        self.service: Service = parse(uri)
        self.version = ""
        self.api: tuple[int, ...] = ()
        self._stack = ExitStack()
        self._client: Any = None
        self._verify: str | bool | None = None

    @property
    def is_local(self) -> bool:
        """Whether the host's files can be read as this host's own."""
        return isinstance(self.service, UnixService)

    @property
    def host(self) -> str:
        """Where it is, for people: the host's name for a local socket, else the address."""
        return socket.gethostname() if self.is_local else str(self.service)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            url = self._reach(stack)
            self._client = self._open(stack, url, _FIRST)
            answer = self.get("version")
            self.version = str(answer.get("Version", ""))
            components = answer.get("Components") or [{}]
            api = str(
                (components[0].get("Details") or {}).get("APIVersion") or answer.get("ApiVersion") or self.version
            )
            self.api = tuple(int(part) for part in api.split("-", maxsplit=1)[0].split(".") if part.isdigit())
            if self.api < OLDEST:
                raise UnsupportedVersionError(
                    f"{self.service} is Podman {self.version}, which is too old", hint="Podman 4.3 or newer is needed"
                )
            # Newer services answer in the form of the version that is asked for.
            self._client = self._open(stack, url, ".".join(map(str, self.api)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _reach(self, stack: ExitStack) -> str:
        """Return the URL for podman-py, with a tunnel to it where the service is behind SSH."""
        match self.service:
            case UnixService(path):
                self._knock(path)
                return f"http+unix://{path}"
            case SshService(login, far):
                # podman-py's own ssh switches off the check of the host's key.
                tunnel = stack.enter_context(SshTunnel(login, far, timeout=CONNECT_TIMEOUT))
                return f"http+unix://{tunnel.address.path}"
            case TcpService() as service:
                self._verify = None if service.plain else True
                if service.tls is not None:
                    self._verify = str(service.tls / "ca-cert.pem")
                return str(service)

    def _knock(self, path: Path) -> None:
        """Raise PodmanError unless somebody listens; podman-py would leave its socket open where nobody does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
            knocking.settimeout(CONNECT_TIMEOUT)
            try:
                knocking.connect(str(path))
            except OSError as error:
                raise self._lost("connect", error) from error

    def _open(self, stack: ExitStack, url: str, version: str) -> Any:
        client = APIClient(base_url=url, version=version)
        client.trust_env = False  # no proxy or password of the environment has any business here
        if isinstance(self.service, TcpService) and self.service.tls is not None:
            certificate = self.service.tls / "client-cert.pem"
            if certificate.exists():
                client.cert = (str(certificate), str(self.service.tls / "client-key.pem"))
        stack.callback(client.close)
        return client

    # --- requests ---

    def _request(
        self, method: str, path: str, what: str, *, timeout: float, stream: bool = False, **options: Any
    ) -> Any:
        try:
            response = getattr(self._client, method)(
                path, stream=stream, timeout=(CONNECT_TIMEOUT, timeout), verify=self._verify, **options
            )
        except _FAILURES as error:
            raise self._lost(what, error) from error
        if response.status_code >= 400:
            try:
                said = _explanation(response.content)
            except _FAILURES as error:
                raise self._lost(what, error) from error
            finally:
                response.close()
            raise refusal(response.status_code, what, said)
        return response

    def _lost(self, what: str, error: Exception) -> PodmanError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, PermissionError):
                return PodmanAccessError(
                    f"this user may not use the Podman service at {self.service}", hint="run as its owner"
                )
            if isinstance(cause, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
                return PodmanAccessError(
                    f"TLS with {self.service} failed",
                    hint="check the certificates that ?tls=DIR names, and the host's name",
                )
            cause = cause.__cause__ or cause.__context__
        return PodmanUnreachableError(
            f"the Podman service at {self.service} does not answer; it was asked to {what}",
            hint="is it running? for root: systemctl start podman.socket; for a user: systemctl --user start podman.socket",
        )

    def get(self, path: str, what: str | None = None, **parameters: Any) -> Any:
        """Return the JSON at `path` below `/libpod`. Raises PodmanError."""
        return self._json(self._request("get", path, what or f"show {path}", timeout=ANSWER_TIMEOUT, params=parameters))

    def post(
        self,
        path: str,
        what: str | None = None,
        body: object = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
        **parameters: Any,
    ) -> Any:
        """Send `body` as JSON; return the JSON of the answer, or None where it has none. Raises PodmanError."""
        data = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._json(
            self._request(
                "post", path, what or f"do {path}", timeout=timeout, data=data, headers=headers, params=parameters
            )
        )

    def delete(self, path: str, what: str | None = None, **parameters: Any) -> None:
        """Remove what is at `path`. Raises PodmanError."""
        self._request("delete", path, what or f"remove {path}", timeout=ANSWER_TIMEOUT, params=parameters).close()

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`, such as `volumes/data`."""
        try:
            self._request("get", f"{path}/exists", f"look for {path}", timeout=ANSWER_TIMEOUT).close()
        except PodmanError as error:
            if error.status == 404:
                return False
            raise
        return True

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: object = None,
        timeout: float = ANSWER_TIMEOUT,
        **parameters: Any,
    ) -> Iterator[Iterator[bytes]]:
        """Open a long answer; the inner iterator returns its pieces. Raises PodmanError, also while it is read."""
        options: dict[str, Any] = {"params": parameters}
        if body is not None:
            options |= {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        response = self._request(method, path, what, timeout=timeout, stream=True, **options)
        try:
            yield self._pieces(response, what)
        finally:
            response.close()

    def _pieces(self, response: Any, what: str) -> Iterator[bytes]:
        try:
            for piece in response.raw.stream(STREAM_CHUNK, decode_content=False):
                yield bytes(piece)
        except _FAILURES as error:
            raise self._lost(what, error) from error

    def send(
        self,
        method: str,
        path: str,
        what: str,
        pieces: Iterable[bytes],
        *,
        timeout: float = ANSWER_TIMEOUT,
        **parameters: Any,
    ) -> Any:
        """Send a tar stream piece by piece; return the JSON of the answer, if any. Raises PodmanError."""
        headers = {"Content-Type": "application/x-tar"}
        return self._json(
            self._request(method, path, what, timeout=timeout, data=iter(pieces), headers=headers, params=parameters)
        )

    def _json(self, response: Any) -> Any:
        try:
            content = response.content
        except _FAILURES as error:
            raise self._lost("answer", error) from error
        finally:
            response.close()
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise PodmanError(
                f"{self.service} gave an answer that is no JSON", hint="is it a Podman service?"
            ) from error


def name_in_path(name: str) -> str:
    """Return `name` as one part of a request's path; names come from users and backups."""
    return quote(name, safe="")


def _explanation(content: bytes) -> str:
    """Return what the service says about a failure."""
    with suppress(ValueError, AttributeError):
        answer = json.loads(content)
        return str(answer.get("message") or answer.get("cause") or "").strip()
    return ""
