"""From addresses to folders, without touching the disk."""

from pathlib import Path

import pytest

from lab_backup.errors import UsageError
from lab_backup.storage.address import local_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/backups", "/srv/backups"),
        ("/srv/with%20percent", "/srv/with%20percent"),
        ("relative/path", "relative/path"),
        (".", "."),
        ("~", "~"),
        ("C:folder", "C:folder"),
        ("a:b", "a:b"),
        ("file", "file"),
        ("file:///srv/backups", "/srv/backups"),
        ("FILE:///srv/backups", "/srv/backups"),
        ("file://localhost/srv/backups", "/srv/backups"),
        ("file:/srv/backups", "/srv/backups"),
        ("file:///srv/a%20b%25", "/srv/a b%"),
        ("file:///srv/%C3%BC", "/srv/ü"),
        ("file:///srv/%FF", "/srv/\udcff"),
        ("file:///", "/"),
    ],
)
def test_addresses_of_this_machine(url: str, path: str) -> None:
    """Paths are taken literally; only `file:` URLs are decoded, as RFC 8089 says."""
    assert local_path(url) == Path(path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "empty"),
        ("/srv/\0/x", "NUL"),
        ("file:///srv/%00", "NUL"),
        ("file://", "no path"),
        ("file://server/srv", "names the host 'server'"),
        ("file://../srv", "names the host"),
        ("file:///srv?x=1", "%3F"),
        ("file:///srv#part", "%23"),
        ("file://[bad/srv", "not a valid URL"),
        ("s3://bucket/prefix", "s3"),
        ("sftp://user:sesame@host/x", "sftp"),
        ("http://example.org", "http"),
    ],
)
def test_refused_addresses(url: str, words: str) -> None:
    """Everything else is a usage error that names the trouble, and says what is known."""
    with pytest.raises(UsageError) as caught:
        local_path(url)
    assert words in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "url", ["sftp://user:sesame@host/x", "file://user:sesame@host/x", "file://user:sesame@host/x?y"]
)
def test_no_secret_in_errors(url: str) -> None:
    """A password that somebody put into an address is never repeated."""
    with pytest.raises(UsageError) as caught:
        local_path(url)
    assert "sesame" not in f"{caught.value} {caught.value.hint}"
