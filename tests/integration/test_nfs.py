"""Repositories on a real NFS server: mounted when needed, never written to the disk below, and through everything that servers do."""

import errno
import os
import secrets
import signal
import subprocess
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from lab_backup.operations.storage_test import check_storage
from lab_backup.operations.verify import verify
from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    StorageAccessError,
    StorageBackend,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)
from lab_backup.storage.local import LocalStorage
from lab_backup.storage.nfs.address import Address
from lab_backup.storage.nfs.mounter import Mounter
from lab_backup.storage.nfs.storage import NFSStorage
from lab_backup.storage.retry import RetryingStorage
from lab_backup.units import MiB
from support.engine import back_up, new_repository, restored
from support.nfs import FUSE, Ganesha
from support.waiting import has_ended, wait_until

UMOUNT = "/usr/bin/umount"


def fill(storage: StorageBackend) -> None:
    """Store more than the small export holds."""
    for number in range(40):
        storage.upload(f"big/{number}", secrets.token_bytes(MiB))


def fresh() -> str:
    """Return a folder that nobody has used."""
    return f"test/{secrets.token_hex(6)}"


def test_whole_backups(ganesha: Ganesha, tmp_path: Path) -> None:
    """Back up, verify and restore on the server; what is there is what the server has in its folder."""
    place = fresh()
    content = secrets.token_bytes(3 * MiB)
    storage = RetryingStorage(ganesha.open(place))
    with closing(storage), new_repository(storage, tmp_path, passphrase="correct") as repository:
        backup = back_up(repository, content).backup
        assert restored(repository, backup) == content
        report = verify(repository, read_data=True)
        assert (report.corrupt, report.missing) == (0, 0)
        assert {info.path for info in storage.list()} == {
            str(path.relative_to(ganesha.directory / "export" / place))
            for path in (ganesha.directory / "export" / place).rglob("*")
            if path.is_file() and ".tmp" not in path.parts
        }
        assert storage.get_usage().total is not None


def test_mounted_once_and_left_by_the_last(ganesha: Ganesha) -> None:
    """Several storages of one address share a mount, which goes with the last of them; a mount that is there is used and left alone."""
    place = fresh()
    ganesha.open(place).close()
    assert ganesha.mounted() == []
    first = ganesha.open(place, create=False)
    second = ganesha.open(place, create=False)
    assert len(ganesha.mounted()) == 1
    first.upload("a", b"one")
    first.close()
    first.close()
    assert second.read("a") == b"one"
    deeper = ganesha.open(f"{place}/deeper")  # is made in the same mount
    assert len(ganesha.mounted()) == 1
    deeper.close()
    second.close()
    assert ganesha.mounted() == []


def test_a_mount_of_a_killed_process_is_taken_over(ganesha: Ganesha) -> None:
    """What somebody mounted who was killed is joined, and unmounted at the end."""
    address = ganesha.address("test")
    (ganesha.directory / "export/test").mkdir(exist_ok=True)
    left = ganesha.mounter.mount(address)
    os.close(left._lock)  # as if its process were gone: its lock is, the mount is not
    left._lock = -1
    assert len(ganesha.mounted()) == 1
    ganesha.open("test", create=False).close()
    assert ganesha.mounted() == []


def test_nothing_is_written_where_the_mount_is_gone(ganesha: Ganesha) -> None:
    """With the mount taken away nothing ends up on the disk below it, by whatever call, and it does not look as if objects were missing."""
    place = fresh()
    storage = ganesha.open(place, create=True)
    storage.upload("manifests/1", b"data")
    mount = ganesha.mounted()[0]
    subprocess.run([UMOUNT, "--lazy", mount], check=True, timeout=30)
    refused = TransientStorageError, StorageAccessError, StorageNotFoundError
    with suppress(*refused):
        storage.upload("a", b"x")
    with suppress(*refused):
        storage.create("b", b"x")
    with suppress(*refused):
        storage.read("manifests/1")
    assert list(mount.rglob("*")) == []
    storage.close()
    assert list(mount.rglob("*")) == []
    assert not (ganesha.directory / "mounts" / "a").exists()


def test_a_folder_that_is_not_on_the_mount(ganesha: Ganesha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mount point is there and the mount is not, the storage does not open, with or without `create`."""
    monkeypatch.setattr(Mounter, "existing", lambda *_: tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for create in (False, True):
        with pytest.raises(StorageNotFoundError, match="not mounted any more"):
            NFSStorage(ganesha.address("x"), create=create, mounter=ganesha.mounter)
    monkeypatch.setattr(Mounter, "existing", lambda *_: tmp_path / "empty" / "below")
    with pytest.raises(StorageNotFoundError, match="not mounted any more"):
        NFSStorage(ganesha.address("x"), create=True, mounter=ganesha.mounter)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_restarted_server_loses_nothing(ganesha: Ganesha, tmp_path: Path) -> None:
    """The server is killed and started again in the middle of a backup: it goes on, and every object is whole."""
    content = secrets.token_bytes(24 * MiB)
    storage = RetryingStorage(ganesha.open(fresh()), attempts=30, base_delay=0.1, max_delay=0.5)
    with closing(storage), new_repository(storage, tmp_path, passphrase=None) as repository:
        began = threading.Event()
        real = storage.upload

        def upload(path: str, data: bytes, metadata: None = None) -> None:
            if path.startswith("packs/"):
                began.set()
            real(path, data, metadata)

        storage.upload = upload  # type: ignore[method-assign,assignment]

        def restart() -> None:
            assert began.wait(60)
            ganesha.stop()
            ganesha.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        backup = back_up(repository, content).backup
        restarting.join(60)
        assert not restarting.is_alive()
        assert restored(repository, backup) == content
        report = verify(repository, read_data=True)
        assert (report.backups, report.corrupt, report.missing) == (1, 0, 0)


def test_read_only_and_full(ganesha: Ganesha) -> None:
    """A read-only export can be read and says that it cannot be written; a full one says that it is full, and keeps what it has."""
    place = fresh()
    with closing(ganesha.open(place)) as storage:
        storage.upload("a", b"there")
    with closing(ganesha.open(place, export="readonly", create=False)) as storage:
        assert storage.read("a") == b"there"
        with pytest.raises(StorageAccessError):
            storage.upload("b", b"x")
        with pytest.raises(StorageAccessError):
            storage.delete("a")
    with closing(ganesha.open("in", export="small", create=False)) as storage:
        storage.upload("kept", b"kept")
        with pytest.raises(NoSpaceError):
            fill(storage)
        assert storage.read("kept") == b"kept"
        for info in list(storage.list("big")):
            storage.delete(info.path)
        storage.upload("again", b"there is room")


def test_what_cannot_be_mounted(ganesha: Ganesha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder, a server that is away, a mount that hangs or lies, and somebody who is not root: each by its own error."""
    with pytest.raises(StorageNotFoundError):
        ganesha.open("missing/deep/deeper", create=False)
    away = Address("127.0.0.1", "/export/x", ("port=1",))
    with pytest.raises(StorageError):
        NFSStorage(away, mounter=ganesha.mounter)

    def mounter(script: str, seconds: float = 10) -> Mounter:
        program = tmp_path / "mount-it"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        return Mounter(folder=tmp_path / "mounts", program=(str(program),), kinds=FUSE, timeout=seconds)

    for script, kind in (
        ("echo 'mount.nfs: access denied by server while mounting' >&2; exit 32", StorageAccessError),
        ("echo 'mount.nfs: Connection timed out' >&2; exit 32", TransientStorageError),
        ("echo 'mount.nfs: mounting failed: No such file or directory' >&2; exit 32", StorageNotFoundError),
        ("exit 0", StorageError),
    ):
        with pytest.raises(kind, match="cannot be mounted"):
            NFSStorage(away, mounter=mounter(script))
    with pytest.raises(TransientStorageError, match="within 0 seconds"):
        NFSStorage(away, mounter=mounter(f"sleep 300 & echo $! > {tmp_path}/child; wait", 0.5))
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: has_ended(child))  # what mount(8) started does not mount later
    (tmp_path / "child").unlink()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        NFSStorage(away, mounter=mounter(f"sleep 300 & echo $! > {tmp_path}/child; wait", 60))
    interrupted = int((tmp_path / "child").read_text())
    wait_until(lambda: has_ended(interrupted))  # nor does it when we are interrupted
    told = tmp_path / "told"
    with pytest.raises(StorageError):
        NFSStorage(away, mounter=mounter(f'printf "%s\\n" "$@" > {told}; exit 1'))
    assert told.read_text().splitlines()[:3] == ["-o", away.mount_options, "127.0.0.1:/export/x"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(StorageAccessError, match="only root") as refused:
        NFSStorage(away, mounter=mounter("exit 0"))
    assert "/etc/fstab" in str(refused.value.hint)


def test_a_forgotten_handle_is_found_again(ganesha: Ganesha) -> None:
    """When the server has forgotten the folder's handle, the first call fails as passing, and the next one works."""
    with closing(ganesha.open(fresh())) as storage:
        storage.upload("a", b"there")
        storage.upload("b/c", b"there")
        failing = [True]

        def opened(*arguments: object, **keywords: object) -> int:
            if failing.pop() if failing else False:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return original(*arguments, **keywords)  # type: ignore[arg-type]  # handed on as it is

        original = os.open
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lab_backup.storage.local.os.open", opened)
            with pytest.raises(TransientStorageError):
                storage.read("a")
            assert storage.read("a") == b"there"
        assert storage.read("b/c") == b"there"


def test_a_handle_is_not_found_again_elsewhere(ganesha: Ganesha) -> None:
    """A forgotten handle is not replaced by the folder below a mount that is gone: everything goes on failing, and that folder stays empty."""
    with closing(ganesha.open(fresh())) as storage:
        storage.upload("a", b"there")
        (mount,) = ganesha.mounted()
        subprocess.run([UMOUNT, "--lazy", mount], check=True, timeout=30)
        real, stale = os.open, os.fstat(storage._root).st_dev

        def opened(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if dir_fd is not None and os.fstat(dir_fd).st_dev == stale:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(path, flags, mode, dir_fd=dir_fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lab_backup.storage.local.os.open", opened)
            for _ in range(3):
                with pytest.raises(TransientStorageError):
                    storage.upload("b", b"x")
                with pytest.raises(TransientStorageError):
                    storage.read("a")
        assert list(mount.rglob("*")) == []


def test_another_servers_mount_is_refused(ganesha: Ganesha, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that is there, but of another server, is not written to."""
    place = fresh()
    with closing(ganesha.open(place)) as storage:
        (mount,) = ganesha.mounted()
        monkeypatch.setattr(Mounter, "existing", lambda *_: mount)
        address = ganesha.address(place)
        with pytest.raises(StorageNotFoundError, match="not mounted any more"):
            NFSStorage(Address("192.0.2.1", address.path, address.options), mounter=ganesha.mounter)
        assert list(storage.list()) == []


def test_create_with_a_lost_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a server has made the name and its answer was lost, so that the client asks again and hears that it is there, `create` has succeeded; but only then.

    On a local disk, where one file has one number under all its names, as the kernel's NFS client shows it and the tests' does not.
    """
    with closing(LocalStorage(tmp_path)) as storage:
        real = os.link

        def lost(*arguments: Any, **keywords: Any) -> None:
            real(*arguments, **keywords)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

        def beaten(source: str, name: str, **keywords: Any) -> None:
            storage.upload(name, b"another's")
            real(source, name, **keywords)

        monkeypatch.setattr("lab_backup.storage.local.os.link", lost)
        storage.create("a", b"ours")
        assert storage.read("a") == b"ours"
        monkeypatch.setattr("lab_backup.storage.local.os.link", beaten)
        with pytest.raises(ObjectExistsError):
            storage.create("b", b"ours")
        assert storage.read("b") == b"another's"


def test_names_that_the_client_keeps_are_not_objects(ganesha: Ganesha) -> None:
    """What the kernel's client leaves of a file that was deleted while it was open, `.nfs…`, is not listed."""
    place = fresh()
    with closing(ganesha.open(place)) as storage:
        storage.upload("packs/a", b"there")
        (ganesha.directory / "export" / place / "packs/.nfs00000000000a1b2c00000001").write_bytes(b"deleted")
        assert [info.path for info in storage.list()] == ["packs/a"]


def test_the_self_check(ganesha: Ganesha) -> None:
    """`storage test` finds nothing wrong with a good server, and on a read-only export says what is."""
    place = fresh()
    with closing(ganesha.open(place)) as storage:
        assert {check.outcome for check in check_storage(storage).checks} == {"ok"}
        assert list(storage.list()) == []
    with closing(ganesha.open(place, export="readonly", create=False)) as storage:
        failed = [check for check in check_storage(storage).checks if check.outcome == "failed"]
        assert [check.name for check in failed][:1] == ["write"]
        assert failed[0].hint
