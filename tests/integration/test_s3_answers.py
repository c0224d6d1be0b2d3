"""What an S3 server, or something that stands before it, can answer: each spoiled or refusing answer is a typed error, and is not kept for true."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from lab_backup.storage.base import StorageAccessError, StorageNotFoundError, TransientStorageError
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.s3.settings import Connection, Credentials
from lab_backup.storage.s3.storage import MULTIPART, S3Storage

XML = '<?xml version="1.0" encoding="UTF-8"?>'
NOW = "2030-01-01T00:00:00.000Z"


class Answer(NamedTuple):
    """What the server says next."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str) -> Answer:
    """Return an answer of an S3 server that refuses."""
    return Answer(status, f"{XML}<Error><Code>{code}</Code><Message>no</Message></Error>")


class Scripted(ThreadingHTTPServer):
    """A server that gives the answers of its script, one by one, and the last one for ever."""

    script: list[Answer]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        script = self.server.script
        status, body, headers = script.pop(0) if len(script) > 1 else script[0]
        given = dict(headers)
        self.send_response_only(status)
        self.send_header("Date", given.pop("Date", self.date_time_string()))
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815  names of the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Say nothing."""


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Run the server."""
    with Scripted(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(30)


def store(server: Scripted, *script: Answer) -> S3Storage:
    """Return a store on the server, which will give these answers."""
    server.script = list(script)
    connection = Connection(
        endpoint=f"http://127.0.0.1:{server.server_port}",
        credentials=Credentials("KEY", "not-in-any-text"),
        read_timeout=10,
    )
    return S3Storage("bucket", "place", connection=connection)


SPOILED: dict[str, tuple[Callable[[S3Storage], object], Answer]] = {
    "no XML": (lambda s3: list(s3.list()), Answer(200, "<ListBucketRes")),
    "another page": (lambda s3: list(s3.list()), Answer(200, "<html><body>Please log in</body></html>")),
    "nothing": (lambda s3: list(s3.list()), Answer(200)),
    "bad date": (
        lambda s3: list(s3.list()),
        Answer(
            200,
            f"{XML}<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>place/a</Key><Size>1</Size>"
            "<LastModified>yesterday</LastModified></Contents></ListBucketResult>",
        ),
    ),
    "bad size": (
        lambda s3: list(s3.list()),
        Answer(
            200,
            f"{XML}<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>place/a</Key><Size>much</Size>"
            f"<LastModified>{NOW}</LastModified></Contents></ListBucketResult>",
        ),
    ),
    "no size": (
        lambda s3: list(s3.list()),
        Answer(
            200,
            f"{XML}<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>place/a</Key>"
            f"<LastModified>{NOW}</LastModified></Contents></ListBucketResult>",
        ),
    ),
    "no token": (
        lambda s3: list(s3.list()),
        Answer(200, f"{XML}<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
    ),
    "no time": (lambda s3: s3.stat("a"), Answer(200, "", (("Content-Length", "3"),))),
    "bad time": (lambda s3: s3.stat("a"), Answer(200, "", (("Content-Length", "3"), ("Last-Modified", "now")))),
    "no upload": (
        lambda s3: s3.upload("a", bytes(MULTIPART + 1)),
        Answer(200, f"{XML}<InitiateMultipartUploadResult/>"),
    ),
    "locks": (lambda s3: s3.locks, Answer(200, "<Object")),
    "uploads": (lambda s3: s3.clean_temporary(0), Answer(200, "<List")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_answer_is_a_passing_failure(scripted: Scripted, case: str) -> None:
    """Whatever is wrong about an answer, the caller may ask again; a listing that is none is never an empty one."""
    act, answer = SPOILED[case]
    with closing(store(scripted, answer)) as s3, pytest.raises(TransientStorageError) as caught:
        act(s3)
    assert caught.value.hint
    assert caught.value.__suppress_context__


def test_a_missing_bucket_is_not_missing_data(scripted: Scripted) -> None:
    """HEAD cannot say what is missing, and some servers' GET does not: the bucket is looked at before the object is called missing."""
    calls: list[Callable[[S3Storage], object]] = [
        lambda s3: s3.stat("a"),
        lambda s3: s3.read("a"),
        lambda s3: s3.locked_until("a"),
    ]
    for call in calls:
        answers = refusal(404, "NoSuchKey"), refusal(404, "NoSuchBucket")
        with closing(store(scripted, *answers)) as s3, pytest.raises(StorageNotFoundError):
            call(s3)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken"), (503, "SlowDown")])
def test_a_refusal_is_not_kept_as_an_answer(scripted: Scripted, status: int, code: str) -> None:
    """Whether the bucket locks is not known while the server refuses to say it; with the next answer it is."""
    enabled = Answer(
        200, f"{XML}<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
    )
    expected = TransientStorageError if status == 503 else StorageAccessError
    with closing(store(scripted, refusal(status, code), enabled)) as s3:
        with pytest.raises(expected):
            _ = s3.locks
        assert s3.locks


def test_a_refusal_does_not_make_a_bucket_one_without_versions(scripted: Scripted) -> None:
    """A deletion that may not ask for versions fails, rather than leaving delete markers for ever."""
    with closing(store(scripted, refusal(403, "AccessDenied"), Answer(204))) as s3, pytest.raises(StorageAccessError):
        s3.delete("a")


def test_what_is_asked_once_is_asked_again(scripted: Scripted) -> None:
    """A busy server is waited for, also where it is asked what it can do."""
    none = refusal(404, "ObjectLockConfigurationNotFoundError")
    with closing(RetryingStorage(store(scripted, refusal(503, "SlowDown"), none), sleep=lambda _: None)) as s3:
        assert not s3.locks
    ok, exists = Answer(200), refusal(412, "PreconditionFailed")
    with closing(
        RetryingStorage(
            store(scripted, refusal(503, "SlowDown"), refusal(503, "SlowDown"), ok, exists), sleep=lambda _: None
        )
    ) as s3:
        assert s3.atomic_create


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clocks_that_differ(scripted: Scripted, seconds: int) -> None:
    """The error names the clock, by the server's word or by its date where an answer has no body."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    cases: list[tuple[Answer, Callable[[S3Storage], object]]] = [
        (refusal(403, "RequestTimeTooSkewed"), lambda s3: s3.read("a")),
        (Answer(403, "", (("Date", date),)), lambda s3: s3.stat("a")),
    ]
    for answer, call in cases:
        with closing(store(scripted, answer)) as s3, pytest.raises(StorageAccessError, match="clock") as caught:
            call(s3)
        assert "NTP" in str(caught.value.hint)
    with closing(store(scripted, Answer(403))) as s3, pytest.raises(StorageAccessError, match="refuses access"):
        s3.stat("a")
