"""Making a boto3 client out of plain values."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import boto3
import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.utils import parse_timestamp

from lab_backup.errors import UsageError
from lab_backup.storage.s3.settings import Connection

# Retrying is RetryingStorage's work: it alone can tell its own object from somebody else's when an answer was lost.
_ATTEMPTS = 1


def make_client(connection: Connection, *, connections: int) -> Any:
    """Return a client, which any number of threads may share, with up to so many connections. Talks to nobody yet.

    Raises UsageError where a profile is unknown or a value makes no sense.
    """
    when = "when_supported" if connection.checksums == "crc32" else "when_required"
    config = Config(
        connect_timeout=connection.connect_timeout,
        read_timeout=connection.read_timeout,
        max_pool_connections=connections,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if connection.path_style else "virtual"},
        request_checksum_calculation=when,
        response_checksum_validation=when,
        user_agent_extra="lab-backup",
    )
    credentials = connection.credentials
    try:
        quick = botocore.session.Session(profile=connection.profile)
        quick.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        session = boto3.session.Session(botocore_session=quick)
        client = session.client(
            "s3",
            endpoint_url=connection.endpoint,
            region_name=connection.region or session.region_name or "us-east-1",
            verify=None if connection.ca_bundle is None else str(connection.ca_bundle),
            config=config,
            **(
                {}
                if credentials is None
                else {
                    "aws_access_key_id": credentials.access_key,
                    "aws_secret_access_key": credentials.secret_key,
                    "aws_session_token": credentials.session_token,
                }
            ),
        )
    except boto.ProfileNotFound as error:
        raise UsageError(f"there is no AWS profile {connection.profile!r}", hint="see ~/.aws/config") from error
    except (ValueError, boto.BotoCoreError) as error:
        raise UsageError(f"the settings of the bucket make no sense: {type(error).__name__}") from error
    if connection.source_address is not None:
        _bind(client, connection.source_address)
    return client


def _timestamp(value: str | float) -> datetime:
    """Return the time that a server gives, in UTC where it names no zone.

    Listings of many objects are mostly this, for which the library's own way takes far longer.
    """
    moment = None
    if isinstance(value, str):
        with suppress(ValueError):
            moment = datetime.fromisoformat(value)
    moment = moment or parse_timestamp(value)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _bind(client: Any, address: str) -> None:
    """Let all connections of the client come from `address`: boto3 has no setting for it, but the library below has."""
    manager = client._endpoint.http_session._manager  # noqa: SLF001  there is no public way to it
    manager.connection_pool_kw["source_address"] = (address, 0)
