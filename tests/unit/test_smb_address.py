"""Addresses of shares: what they say, what they may not, and where the password comes from."""

from pathlib import Path

import pytest

from lab_backup.errors import AccessDeniedError, UsageError
from lab_backup.storage.smb.address import PASSWORD, PASSWORD_FILE, parse

WORD = "hush-hush"


def test_all_that_an_address_says() -> None:
    """Domain, user, port, share, path and settings arrive; signing and encryption are demanded unless switched off."""
    address = parse(
        "smb://LAB;anna%20b@nas:4450/Back%20up/lab/one?encryption=off&source-address=10.0.0.7&concurrency=2",
        environment={PASSWORD: WORD},
    )
    assert (address.host, address.port, address.share, address.path) == ("nas", 4450, "Back up", "lab/one")
    assert (address.domain, address.user, address.password) == ("LAB", "anna b", WORD)
    assert (address.require_signing, address.require_encryption) == (True, False)
    assert (address.source_address, address.concurrency) == ("10.0.0.7", 2)
    assert WORD not in repr(address)


def test_short_ones() -> None:
    """The port is 445, the path empty; without a user no password is looked for."""
    address = parse("smb://nas/backup", environment={})
    assert (address.port, address.path, address.user, address.password) == (445, "", None, None)
    assert address.require_encryption


def test_password_from_a_file(tmp_path: Path) -> None:
    """Its first line counts; a file that others may read is refused."""
    file = tmp_path / "password"
    file.write_text(f"{WORD}\nmore\n")
    file.chmod(0o600)
    assert parse("smb://anna@nas/backup", environment={PASSWORD_FILE: str(file)}).password == WORD
    file.chmod(0o640)
    with pytest.raises(AccessDeniedError, match="open to other users"):
        parse("smb://anna@nas/backup", environment={PASSWORD_FILE: str(file)})


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("smb://anna:hush-hush@nas/backup", "holds a password"),
        ("smb:///backup", "no host or no share"),
        ("smb://nas/", "no host or no share"),
        ("smb://nas:99999/backup", "valid URL"),
        ("smb://nas/backup?signing=maybe", "signing=maybe"),
        ("smb://nas/backup?color=red", "no setting"),
        ("smb://nas/backup?concurrency=0", "concurrency=0"),
        ("smb://anna@nas/backup", "needs a password"),
    ],
)
def test_what_makes_no_sense(url: str, what: str) -> None:
    """Every mistake is named, and no password is repeated."""
    with pytest.raises(UsageError, match=what) as caught:
        parse(url, environment={})
    assert WORD not in str(caught.value) + str(caught.value.hint)
