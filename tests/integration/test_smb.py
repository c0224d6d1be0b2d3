"""Whole backups on a share of a real server: by the command line, through lost connections and restarts, and with what can be wrong about a share."""

import secrets
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lab_backup.storage.base import NoSpaceError, StorageAccessError, StorageError, StorageNotFoundError
from lab_backup.storage.retry import RetryingStorage
from lab_backup.storage.smb import SMBStorage
from lab_backup.units import MiB
from support.engine import back_up, new_repository, restored
from support.program import Program
from support.samba import PASSWORD, SMALL, USER, Samba


def test_by_the_command_line(samba: Samba, tmp_path: Path) -> None:
    """Init, back up, verify, restore and test on a share; the password comes from the environment and is in no output."""
    url = f"smb://{USER}@127.0.0.1:{samba.port}/backup/{secrets.token_hex(6)}"
    program = Program(
        tmp_path, LAB_BACKUP_REPO=url, LAB_BACKUP_PASSPHRASE="correct horse", LAB_BACKUP_SMB_PASSWORD=PASSWORD
    )
    program.ok("repo", "init", url)
    image = tmp_path / "disk.raw"
    image.write_bytes(secrets.token_bytes(3 * MiB) + bytes(5 * MiB))
    backup = program.ok("backup", "image", image)
    assert program.ok("verify", "--read-data")["corrupt"] == 0
    target = tmp_path / "again.raw"
    program.ok("restore", "image", backup["backup"], "--to", target)
    assert target.read_bytes() == image.read_bytes()
    report = program("storage", "test", url, "--json")
    assert PASSWORD not in report.stdout + report.stderr
    assert not [check for check in report.object["checks"] if check["outcome"] == "failed"]


def test_connections_lost_and_server_restarted(samba: Samba, tmp_path: Path) -> None:
    """A backup goes on after its connections were cut, and after the server was killed and came back."""
    content = secrets.token_bytes(12 * MiB)
    share = samba.open(secrets.token_hex(6), create=True)
    storage = RetryingStorage(share, attempts=12, base_delay=0.2, max_delay=2)
    with new_repository(storage, tmp_path) as repository:
        back_up(repository, content[: 2 * MiB])
        samba.drop_connections()
        first = back_up(repository, content[: 6 * MiB])
        samba.stop()
        starter = threading.Timer(1.5, samba.start)
        starter.start()
        try:
            second = back_up(repository, content)
        finally:
            starter.join()
        assert restored(repository, first.backup) == content[: 6 * MiB]
        assert restored(repository, second.backup) == content


def test_what_can_be_wrong(samba: Samba) -> None:
    """Wrong password, unknown user, no such share or folder, nobody there: each is the error that says what to do, and tells no secret."""
    cases: list[tuple[dict[str, object], type[StorageError]]] = [
        ({"password": "wrong" + PASSWORD}, StorageAccessError),
        ({"user": "nobody-here"}, StorageAccessError),
        ({"share": "none"}, StorageNotFoundError),
        ({"path": "no/such/folder"}, StorageNotFoundError),
        ({"port": 9}, StorageError),
    ]
    for options, expected in cases:
        with pytest.raises(expected) as caught:
            samba.open(**options)  # type: ignore[arg-type]  # one of each kind
        assert PASSWORD not in f"{caught.value} {caught.value.hint}"


def test_read_only_share(samba: Samba) -> None:
    """What may only be read is read; writing is refused as such."""
    name = secrets.token_hex(6)
    with closing(samba.open(name, create=True)) as share:
        share.upload("a", b"x")
    with closing(samba.open(name, share="readonly")) as share:
        assert share.read("a") == b"x"
        with pytest.raises(StorageAccessError):
            share.upload("b", b"y")


def fill(share: SMBStorage) -> None:
    """Write more than there is room for."""
    for number in range(8):
        share.upload(f"large-{number}", bytes(SMALL // 4))


def test_full_share(samba: Samba) -> None:
    """A share that is full says so, keeps what it has, and has room again after a deletion."""
    with closing(samba.open(share="small")) as share:
        share.upload("kept", b"kept")
        with pytest.raises(NoSpaceError):
            fill(share)
        assert share.read("kept") == b"kept"
        for info in list(share.list()):
            if info.path != "kept":
                share.delete(info.path)
        share.upload("again", bytes(SMALL // 4))


def test_other_tools_in_the_same_folder(samba: Samba) -> None:
    """Files that no store could have written are neither listed nor touched."""
    name = secrets.token_hex(6)
    with closing(samba.open(name, create=True)) as share:
        theirs = samba.folder() / name / "my notes.txt"
        theirs.write_text("theirs")
        share.upload("ours", b"x")
        assert [info.path for info in share.list()] == ["ours"]
        assert share.clean_temporary(0) == 0
        assert theirs.read_text() == "theirs"
