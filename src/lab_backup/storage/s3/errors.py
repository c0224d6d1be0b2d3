"""From what boto3 raises to what a caller may do next. No text of a server or library that could hold a secret is passed on."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as Urllib3Error

from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)

_PASSING = {
    "BadDigest",  # flipped on the way
    "ConditionalRequestConflict",
    "InternalError",
    "NoSuchUpload",  # its answer was lost: the whole upload is repeated
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_CREDENTIALS = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_SKEW = timedelta(minutes=15)  # what servers tolerate between our clock and theirs
_SPOILED = (ResponseParserError, ValueError, LookupError, TypeError, AttributeError)
"""What botocore, and whoever looks into its answers, raises about an answer that is no XML, or lacks a field, or has a date that is none."""
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_LOST = (
    boto.ConnectionError,
    boto.FlexibleChecksumError,  # flipped on the way
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    Urllib3Error,
    ConnectionError,
    TimeoutError,
)


def code_of(error: boto.ClientError) -> str:
    """Return the server's word for what happened; for an answer without a body, its status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: boto.ClientError) -> int:
    """Return the HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated(url: str, path: str) -> Iterator[None]:
    """Turn what boto3 raises inside the block about the object `path` of the store `url` into a StorageError."""
    try:
        yield
    except boto.ClientError as error:
        raise from_answer(error, url, path) from None
    except boto.SSLError:
        raise StorageError(
            f"{url}: the server's certificate is not trusted, or it speaks no TLS",
            hint="name the authority that signed it: ?ca=FILE",
        ) from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError):
        raise StorageAccessError(
            f"{url}: there are no credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile: ?profile=NAME",
        ) from None
    except _LOST as error:
        raise TransientStorageError(
            f"{url}: the connection to the server failed ({type(error).__name__})",
            hint="check that the server runs and that endpoint and network are right",
        ) from None
    except boto.BotoCoreError as error:
        raise StorageError(f"{url}: {type(error).__name__} while working on {path or 'the bucket'}") from None
    except _SPOILED as error:
        raise TransientStorageError(
            f"{url}: the answer about {path or 'the bucket'} makes no sense ({type(error).__name__})",
            hint="check that the endpoint is an S3 server, and what stands between it and this machine",
        ) from None


def from_answer(error: boto.ClientError, url: str, path: str) -> StorageError:  # noqa: PLR0911  a table in the form of a list
    """Return the error that the server's answer about `path` stands for."""
    code, status, what = code_of(error), status_of(error), path or "the bucket"
    if code == "NoSuchBucket":
        return StorageNotFoundError(f"{url}: there is no such bucket", hint="make it first; Lab Backup makes none")
    if code in _CREDENTIALS:
        return StorageAccessError(f"{url}: the server does not accept the credentials ({code})", hint="check the keys")
    if code == "RequestTimeTooSkewed" or (status == 403 and _is_skewed(error)):
        return StorageAccessError(
            f"{url}: this machine's clock and the server's differ too much, so it refuses every request",
            hint="set the clock, and keep it right by NTP",
        )
    if code in _FULL or status == 507:
        return NoSpaceError(f"{url}: the server has no room for {what}", hint="delete backups, or raise the quota")
    if code in _PASSING or status in _PASSING_STATUS:
        return TransientStorageError(
            f"{url}: the server answered {code or status} about {what}",
            hint="try again later; where it goes on, look at the server, or ask for less at once: ?concurrency=2",
        )
    if status == 412:
        return ObjectExistsError(f"{path} exists already in {url}")
    if status == 404 and not path:
        return StorageNotFoundError(f"{url}: the server knows no such bucket ({code or status})", hint="check its name")
    if status == 404:
        return ObjectNotFoundError(f"there is no {path} in {url}")
    if status == 403:
        return StorageAccessError(
            f"{url}: the server refuses access to {what} ({code or status})", hint="check what the key is allowed to do"
        )
    return StorageError(f"{url}: the server answered {code or status} about {what}")


def is_status(error: Any, *wanted: int) -> bool:
    """Whether `error` is an answer with one of these statuses."""
    return isinstance(error, boto.ClientError) and status_of(error) in wanted


def is_unknown(error: boto.ClientError) -> bool:
    """Whether the answer says that there is no such setting, or that the server does not know of such a thing at all.

    Never for what may be different with the next request: refused credentials, a missing bucket, a passing failure.
    """
    passing = _PASSING | _CREDENTIALS | {"NoSuchBucket", "RequestTimeTooSkewed"}
    return is_status(error, 400, 404, 405, 501) and code_of(error) not in passing


def _is_skewed(error: boto.ClientError) -> bool:
    """Whether the clocks are the likely reason: answers to HEAD have no body that would say so, but they have a date."""
    text = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(parsedate_to_datetime(text) - datetime.now(UTC)) > _SKEW
    except (ValueError, TypeError):
        return False
