"""Addresses of buckets: what they say, and what they may not."""

import base64

import pytest

from lab_backup.errors import UsageError
from lab_backup.storage.base import InvalidPathError
from lab_backup.storage.s3.address import CUSTOMER_KEY, parse
from lab_backup.storage.s3.settings import Encryption


def test_amazon() -> None:
    """Without an endpoint it is Amazon's, with the bucket in the host name."""
    address = parse("s3://backups/lab/one?region=eu-central-1&profile=lab&storage-class=STANDARD_IA", environment={})
    assert (address.bucket, address.prefix, address.storage_class) == ("backups", "lab/one", "STANDARD_IA")
    assert (address.connection.endpoint, address.connection.region) == (None, "eu-central-1")
    assert (address.connection.profile, address.connection.path_style) == ("lab", False)
    assert (address.lock_mode, address.encryption) == ("GOVERNANCE", None)


def test_another_server() -> None:
    """With an endpoint the bucket is in the path, unless it is said otherwise; all other settings arrive."""
    url = "s3://b-1?endpoint=https://nas:9000&checksums=md5&lock-mode=compliance&source-address=10.0.0.7&concurrency=3"
    address = parse(url, environment={})
    assert (address.prefix, address.lock_mode, address.concurrency) == ("", "COMPLIANCE", 3)
    assert (address.connection.endpoint, address.connection.path_style) == ("https://nas:9000", True)
    assert (address.connection.checksums, address.connection.source_address) == ("md5", "10.0.0.7")
    assert not parse("s3://b-1?endpoint=https://nas:9000&style=virtual", environment={}).connection.path_style


@pytest.mark.parametrize(
    ("sse", "expected"),
    [
        ("s3", Encryption(algorithm="AES256")),
        ("kms", Encryption(algorithm="aws:kms")),
        ("kms:arn:aws:kms:x:1:key/2", Encryption(algorithm="aws:kms", kms_key="arn:aws:kms:x:1:key/2")),
        ("customer", Encryption(customer_key=bytes(range(32)))),
    ],
)
def test_encryption_by_the_server(sse: str, expected: Encryption) -> None:
    """Its keys, one of its KMS, or ours, which is in the environment and in no text."""
    environment = {CUSTOMER_KEY: base64.b64encode(bytes(range(32))).decode()}
    found = parse(f"s3://bucket/?sse={sse}", environment=environment).encryption
    assert found == expected
    assert "\\x1f" not in repr(found)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://", "name of a bucket"),
        ("s3://key:secret@bucket/x", "user or password"),
        ("s3://bucket?nonsense=1", "'nonsense' is no setting"),
        ("s3://bucket?region=a&region=b", "twice or empty"),
        ("s3://bucket?region=", "twice or empty"),
        ("s3://bucket?endpoint=nas:9000", "address of a server"),
        ("s3://bucket?endpoint=https://u:p@nas", "holds a user or password"),
        ("s3://bucket?style=flat", "style=flat"),
        ("s3://bucket?checksums=sha1", "checksums=sha1"),
        ("s3://bucket?concurrency=0", "concurrency=0"),
        ("s3://bucket?concurrency=1000", "concurrency=1000"),
        ("s3://bucket?ca=/nowhere/ca.pem", "no such file"),
        ("s3://bucket?sse=rot13", "sse=rot13"),
        ("s3://bucket?sse=customer", "needs a key"),
        ("s3://[bucket", "valid URL"),
    ],
)
def test_what_makes_no_sense(url: str, what: str) -> None:
    """Every mistake is named, and no secret is repeated."""
    with pytest.raises(UsageError, match=what) as caught:
        parse(url, environment={})
    assert "secret" not in str(caught.value) + str(caught.value.hint)


def test_prefixes_are_paths() -> None:
    """A prefix that no storage could hold is refused."""
    with pytest.raises(InvalidPathError):
        parse("s3://bucket/a/../b", environment={})


def test_a_password_in_the_endpoint_is_not_shown() -> None:
    """The refusal of an endpoint with a password in it does not repeat the password."""
    with pytest.raises(UsageError) as refused:
        parse("s3://bucket?endpoint=https://user:topsecret@nas:9000", environment={})
    assert "topsecret" not in f"{refused.value} {refused.value.hint}"
