"""The times that S3 servers give."""

from datetime import UTC, datetime

import pytest

from lab_backup.storage.s3.client import make_client
from lab_backup.storage.s3.settings import Connection, Credentials

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["2026-11-24T12:00:00.000Z", "2026-11-24T12:00:00Z", "2026-11-24T14:00:00+02:00", "Tue, 24 Nov 2026 12:00:00 GMT", "20261124T120000Z", "2026-11-24T12:00:00"],
)  # fmt: skip
def test_every_way_to_write_a_time_is_understood(text: str) -> None:
    """Whatever form of ISO 8601 or RFC 9110 a server writes its times in, they are of the right moment and have a zone."""
    connection = Connection(endpoint="http://127.0.0.1:9", credentials=Credentials("a", "b"))
    client = make_client(connection, connections=1)
    shape = client.meta.service_model.shape_for("Object").members["LastModified"]
    assert client._endpoint._response_parser_factory.create_parser("rest-xml")._handle_timestamp(shape, text) == NOON
