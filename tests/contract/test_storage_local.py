"""What the local store promises beyond the common contract: durability, modes, links, crashes and full disks."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_backup.errors import UsageError
from lab_backup.storage import immutable_file
from lab_backup.storage.address import open_storage
from lab_backup.storage.base import (
    NoSpaceError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageNotFoundError,
    TransientStorageError,
)
from lab_backup.storage.local import LocalStorage
from lab_backup.units import MiB
from support.immutable import unlock_all
from support.small_disk import FILE_SYSTEMS, FileSystem, run_on_small_disk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder of the store."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[LocalStorage]:
    """Return an empty store in `root`."""
    backend = LocalStorage.create_root(root)
    yield backend
    backend.close()


def temporary_files(root: Path) -> list[Path]:
    """Return the leftovers of uploads."""
    return list((root / ".tmp").glob("*"))


def open_files() -> int:
    """Return how many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_full_disk(tmp_path: Path, kind: FileSystem) -> None:
    """On a disk that is really full nothing half-written stays, old objects survive, and deleting makes room again."""
    script = Path(__file__).with_name("storage_on_full_disk.py")
    assert int(run_on_small_disk(script, tmp_path, kind, 8 * MiB)) > 10


WRITE_STEPS = {
    "write": "real = os.pwrite; os.pwrite = lambda fd, data, at: (real(fd, data[:1000], at), wait())",
    "fsync": "os.fsync = lambda fd: wait()",
    "rename": "os.replace = lambda *a, **k: wait()",
}
UPLOAD_AND_HANG = """
import os, sys, time
from pathlib import Path
from lab_backup.storage.local import LocalStorage
store = LocalStorage(Path(sys.argv[1]))
store.upload("a/old", b"old")
store.upload("a/replaced", b"old")
def wait():
    print("hanging", flush=True)
    time.sleep(600)
{patch}
store.upload(sys.argv[2], bytes(1 << 20))
"""


@pytest.mark.parametrize("path", ["a/new", "a/replaced"])
@pytest.mark.parametrize("step", WRITE_STEPS)
def test_kill_in_the_middle_of_an_upload(store: LocalStorage, root: Path, step: str, path: str) -> None:
    """After SIGKILL at any step the object is absent or as before; the leftover is not listed and can be cleaned."""
    code = UPLOAD_AND_HANG.format(patch=WRITE_STEPS[step])
    with subprocess.Popen([sys.executable, "-c", code, str(root), path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hanging\n"
            assert len(temporary_files(root)) == 1
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
    assert {info.path: info.size for info in store.list()} == {"a/old": 3, "a/replaced": 3}
    assert store.read("a/replaced") == b"old"
    assert store.clean_temporary(3600) == 0
    assert len(temporary_files(root)) == 1
    os.utime(temporary_files(root)[0], (0, time.time() - 7200))
    assert store.clean_temporary(3600) == 1
    assert temporary_files(root) == []


def test_what_a_killed_lock_probe_left_goes(tmp_path: Path) -> None:
    """An immutable file among the temporary ones is removed when its time is over, passed over before, and never keeps the others from going."""
    with closing(LocalStorage.create_root(tmp_path / "store")) as store:
        if not store.locks:
            return
        folder = tmp_path / "store" / ".tmp"
        folder.mkdir(exist_ok=True)
        for name, hours in (("over", -1), ("held", 1), ("plain", None)):
            (folder / name).write_bytes(b"x")
            os.utime(folder / name, (0, 0))
            if hours is not None:
                file = os.open(folder / name, os.O_RDONLY)
                immutable_file.lock(file, datetime.now(UTC) + timedelta(hours=hours))
                os.close(file)
        try:
            assert store.clean_temporary(60) == 2
            assert [path.name for path in folder.iterdir()] == ["held"]
        finally:
            unlock_all(tmp_path)


def test_a_root_that_cannot_be_reached_says_nothing_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder itself fails while an object is not found, that is a passing failure, not a missing object and no bare error."""
    with closing(LocalStorage.create_root(tmp_path / "store")) as store:
        root, real = store._root, os.fstat

        def fstat(number: int) -> os.stat_result:
            if number == root:
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(number)

        monkeypatch.setattr("lab_backup.storage.local.os.fstat", fstat)
        with pytest.raises(TransientStorageError):
            store.read("missing")


@pytest.mark.parametrize("call", ["upload", "create"])
def test_everything_is_synced_in_order(
    store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Content is synced before it gets its name, and every folder that gained an entry is synced before the return."""
    events: list[str] = []
    real_fsync, real_replace, real_link = os.fsync, os.replace, os.link

    def fsync(file: int) -> None:
        target = Path(f"/proc/self/fd/{file}").readlink()
        events.append("sync content" if target.parent.name == ".tmp" else f"sync {target.relative_to(root)}")
        real_fsync(file)

    def named(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            real(*arguments, **options)
            events.append("name")

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", named(real_replace))
    monkeypatch.setattr(os, "link", named(real_link))
    getattr(store, call)("packs/ab/1", b"x")
    assert events == ["sync .", "sync packs", "sync content", "name", "sync packs/ab"]
    events.clear()
    getattr(store, call)("packs/ab/2", b"x")
    assert events == ["sync content", "name", "sync packs/ab"]
    events.clear()
    store.delete("packs/ab/2")
    assert events == ["sync packs/ab"]


def test_folder_of_another_process_is_synced_too(
    store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that somebody else made may not be durable yet, so its parent is synced once by us as well."""
    (root / "packs").mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink()))
    store.upload("packs/1", b"")
    assert root in synced


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EACCES, StorageAccessError),
        (errno.EPERM, StorageAccessError),
        (errno.EROFS, StorageAccessError),
        (errno.EIO, TransientStorageError),
        (errno.ESTALE, TransientStorageError),
        (errno.ETIMEDOUT, TransientStorageError),
        (errno.EFBIG, StorageError),
    ],
)
@pytest.mark.parametrize("function", ["pwrite", "fsync", "replace"])
def test_errors_of_the_system_are_sorted(
    store: LocalStorage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    code: int,
    expected: type[StorageError],
) -> None:
    """Each errno becomes the class that says what to do next, names the object, and leaves nothing behind."""
    store.upload("a/other", b"")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(expected, match="a/1") as caught:
            store.upload("a/1", b"content")
    assert type(caught.value) is expected
    assert os.strerror(code) in str(caught.value)
    assert [info.path for info in store.list()] == ["a/other"]
    assert temporary_files(root) == []


def test_read_only_disk(store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be written can be read, and each refused write says so."""
    store.upload("a/1", b"x")
    real_open = os.open

    def read_only(path: str, flags: int, *arguments: object, **options: object) -> int:
        if flags & (os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, *arguments, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(os, "open", read_only)
    again = LocalStorage(root)
    assert again.read("a/1") == b"x"
    assert [info.path for info in again.list()] == ["a/1"]
    with pytest.raises(StorageAccessError):
        again.upload("a/2", b"")
    again.close()


def test_no_hard_links(store: LocalStorage, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Where the file system has no hard links, `create` still never replaces an object."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr("lab_backup.storage.local._exists", lambda *_: False)  # as if another writer came in between
    store.create("a/1", b"first")
    with pytest.raises(ObjectExistsError):
        store.create("a/1", b"second")
    assert store.read("a/1") == b"first"
    assert temporary_files(root) == []


def test_create_that_loses_the_race(store: LocalStorage, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """A name taken after the first look is still not replaced."""
    store.create("a/1", b"first")
    monkeypatch.setattr("lab_backup.storage.local._exists", lambda *_: False)
    with pytest.raises(ObjectExistsError):
        store.create("a/1", b"second")
    assert store.read("a/1") == b"first"
    assert temporary_files(root) == []


def test_modes(store: LocalStorage, root: Path) -> None:
    """Only the owner may read what the store writes, whatever the umask allows."""
    previous = os.umask(0)
    try:
        store.upload("a/b/c", b"secret")
        store.create("a/b/d", b"secret")
        made = LocalStorage.create_root(root / "inner")
        made.close()
    finally:
        os.umask(previous)
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in ("a/b/c", "a/b/d")} == {0o600}
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", ".tmp", "inner")} == {0o700}


def test_links_below_the_root_are_not_followed(store: LocalStorage, root: Path, tmp_path: Path) -> None:
    """A planted symbolic link leads no method out of the store, to a folder or to a file, and the error says so."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"not ours")
    store.upload("a/real", b"ours")
    (root / "folder").symlink_to(outside)
    (root / "a" / "link").symlink_to(outside / "file")
    (root / "a" / "dangling").symlink_to(outside / "new")
    calls: list[Callable[[], object]] = [
        lambda: store.read("folder/file"),
        lambda: store.stat("folder/file"),
        lambda: store.upload("folder/new", b"x"),
        lambda: store.create("folder/new", b"x"),
        lambda: store.delete("folder/file"),
        lambda: list(store.list("folder")),
        lambda: store.read("a/link"),
        lambda: store.stat("a/link"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="symbolic link") as caught:
            call()
        assert not isinstance(caught.value, ObjectNotFoundError)
    # A list names them, for what is not named is not missed: who reads them is told.
    assert {info.path for info in store.list()} == {"a/real", "a/link", "a/dangling", "folder"}
    with pytest.raises(ObjectExistsError):
        store.create("a/dangling", b"x")
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"not ours"}


def test_writing_over_a_link_replaces_the_link(store: LocalStorage, root: Path, tmp_path: Path) -> None:
    """Uploading and deleting act on a planted link itself, never on what it points to."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    store.upload("a/other", b"")
    for name in ("replaced", "deleted"):
        (root / "a" / name).symlink_to(outside)
    store.upload("a/replaced", b"ours")
    store.delete("a/deleted")
    assert outside.read_bytes() == b"not ours"
    assert store.read("a/replaced") == b"ours"
    assert sorted(info.path for info in store.list()) == ["a/other", "a/replaced"]


def test_link_in_place_of_the_temporary_folder(store: LocalStorage, root: Path, tmp_path: Path) -> None:
    """Data never passes through a planted `.tmp` that leads elsewhere, and cleaning removes nothing there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"not ours")
    os.utime(outside / "file", (0, 0))
    (root / ".tmp").symlink_to(outside)
    with pytest.raises(StorageError):
        store.upload("a", b"secret")
    with pytest.raises(StorageError):
        store.clean_temporary(0)
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_foreign_files_are_not_listed(store: LocalStorage, root: Path) -> None:
    """What no store could have written is passed over: odd names, hidden files, sockets, `lost+found`."""
    store.upload("a/1", b"")
    for name in (".hidden", "with space", "ünïcode", "lost+found", "a/.1.swp"):
        (root / name).write_bytes(b"")
    os.mkfifo(root / "a" / "fifo")
    (root / "folder~").mkdir()
    (root / "folder~" / "file").write_bytes(b"")
    assert [info.path for info in store.list()] == ["a/1"]


def test_planted_fifo_blocks_nobody(store: LocalStorage, root: Path) -> None:
    """Reading a FIFO returns at once: it is no object."""
    os.mkfifo(root / "fifo")
    with pytest.raises(ObjectNotFoundError):
        store.read("fifo")
    with pytest.raises(ObjectNotFoundError):
        store.stat("fifo")


def test_removed_root_is_not_an_empty_store(store: LocalStorage, root: Path) -> None:
    """When the folder vanishes nothing is reported as missing or empty: the store is gone, and nothing is made anew."""
    root.rmdir()
    calls: list[Callable[[], object]] = [
        lambda: store.read("a"),
        lambda: store.stat("a"),
        lambda: list(store.list()),
        lambda: list(store.list("a")),
        lambda: store.upload("a", b""),
        lambda: store.upload("a/b", b""),
        lambda: store.create("a/b", b""),
    ]
    for call in calls:
        with pytest.raises(StorageNotFoundError):
            call()
    assert not root.exists()


def test_removed_folders_come_back(store: LocalStorage, root: Path) -> None:
    """A folder removed by hand is made again by the next upload."""
    store.upload("a/b/1", b"")
    shutil.rmtree(root / "a")
    store.upload("a/b/2", b"")
    assert [info.path for info in store.list()] == ["a/b/2"]


def test_list_is_lazy(store: LocalStorage) -> None:
    """The first object is there before the last folder was opened, and an abandoned listing leaks no file descriptor."""
    for number in range(50):
        store.upload(f"{number}/object", b"")
    before = open_files()
    listing = store.list()
    next(listing)
    assert isinstance(listing, Iterator)
    listing.close()  # type: ignore[attr-defined]  # it is a generator, which is what "lazy" means
    assert open_files() == before


def test_no_file_descriptors_leak(store: LocalStorage) -> None:
    """Thousands of calls, failing ones too, leave no file open."""
    store.upload("a/b/1", b"x")
    before = open_files()
    for _ in range(50):
        store.read("a/b/1")
        store.upload("a/b/1", b"x")
        list(store.list())
        store.get_usage()
        for call in (
            lambda: store.read("a/c/1"),
            lambda: store.create("a/b/1", b""),
            lambda: store.upload("a/b/1/2", b""),
        ):
            with pytest.raises(StorageError):
                call()
    assert open_files() == before


def test_temporary_file_removed_by_a_cleaner(store: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose temporary file another process cleaned away may be repeated."""
    real_fsync = os.fsync

    def clean(file: int) -> None:
        real_fsync(file)
        for path in temporary_files(root):
            path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", clean)
        with pytest.raises(TransientStorageError):
            store.upload("a", b"x")
    store.upload("a", b"x")
    assert store.read("a") == b"x"


def test_two_stores_on_one_folder(store: LocalStorage, root: Path) -> None:
    """Two objects, as two processes have, create one path from 8 threads each: one wins."""
    other = LocalStorage(root)
    outcomes: list[str] = []

    def create(backend: LocalStorage) -> None:
        try:
            backend.create("a/b/contested", b"x")
        except ObjectExistsError:
            outcomes.append("lost")
        else:
            outcomes.append("won")

    threads = [threading.Thread(target=create, args=(backend,)) for backend in (store, other) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    other.close()
    assert sorted(outcomes) == ["lost"] * 15 + ["won"]


def test_create_root(tmp_path: Path) -> None:
    """A root is made in an existing folder only; one that exists is opened with all it holds."""
    with pytest.raises(StorageNotFoundError, match="missing"):
        LocalStorage.create_root(tmp_path / "missing" / "store")
    LocalStorage.create_root(tmp_path / "store").upload("a", b"x")
    assert LocalStorage.create_root(tmp_path / "store").read("a") == b"x"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageNotFoundError, match="not a folder"):
        LocalStorage.create_root(tmp_path / "file")
    assert (tmp_path / "file").is_file()


def test_root_may_be_a_link(tmp_path: Path) -> None:
    """The user's own link to the store is followed: only what lies below is guarded."""
    LocalStorage.create_root(tmp_path / "real").upload("a", b"x")
    (tmp_path / "link").symlink_to("real")
    assert LocalStorage(tmp_path / "link").read("a") == b"x"


def test_closed_store_refuses(store: LocalStorage) -> None:
    """After `close` no call touches a file descriptor that may meanwhile be another file."""
    store.close()
    with pytest.raises(StorageError):
        store.upload("a", b"")
    with pytest.raises(StorageError):
        store.read("a")


@pytest.mark.parametrize("address", ["{}/with%20percent", "file://{}/a%20b%25", "file://localhost{}/s"])
def test_addresses_open_stores(tmp_path: Path, address: str) -> None:
    """A path is taken literally, a URL is decoded, and `url` leads back to the same store."""
    made = open_storage(address.format(tmp_path), create=True)
    made.upload("a", b"x")
    assert open_storage(made.url).read("a") == b"x"
    assert [path.name for path in tmp_path.iterdir()] == [
        {"{": "with%20percent", "f": "a b%" if "a%20b" in address else "s"}[address[0]]
    ]


def test_relative_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the working directory at the time of opening."""
    monkeypatch.chdir(tmp_path)
    store = open_storage("store", create=True)
    monkeypatch.chdir("/")
    store.upload("a", b"x")
    assert (tmp_path / "store" / "a").read_bytes() == b"x"


def test_missing_address_makes_nothing(tmp_path: Path) -> None:
    """Opening without `create` refuses a missing folder and does not make it."""
    with pytest.raises(StorageNotFoundError):
        open_storage(str(tmp_path / "missing"))
    with pytest.raises(UsageError):
        open_storage("ftp://bucket", create=True)
    assert list(tmp_path.iterdir()) == []
