"""Restores into new files: whole under their name or not there at all, and nothing else touched."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab_backup.blocks import BlockWriter
from lab_backup.errors import AccessDeniedError, LabBackupError, TargetExistsError
from lab_backup.extent import Extent
from lab_backup.qcow2.layout import Layout, LayoutError
from lab_backup.targets import new_file
from lab_backup.targets.errors import TargetError, TargetFullError
from lab_backup.targets.new_file import NewFile, Owner
from lab_backup.targets.qcow2_file import Qcow2Target
from lab_backup.targets.raw_file import RawFileTarget
from lab_backup.units import KiB, MiB

CHUNK = 128 * KiB
SIZE = 64 * MiB + 1000


def run(*command: str | Path) -> None:
    """Run a tool, which must succeed."""
    subprocess.run(list(map(str, command)), check=True, timeout=60)


def names(folder: Path) -> list[str]:
    """Return what is in the folder, hidden names too."""
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(params=["raw", "qcow2", "raw with a hidden name"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each format of a new file, and one as on file systems that know no unnamed files."""
    if "hidden" in request.param:
        monkeypatch.setattr(new_file, "_UNNAMED", 0)
    return str(request.param).partition(" ")[0]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "none", mount)
    yield mount
    run("umount", mount)


def begin(form: str, path: Path, extents: list[Extent], size: int = SIZE) -> BlockWriter:
    """Begin a restore of a disk with data in these runs."""
    if form == "raw":
        return RawFileTarget(path, size, needed=sum(extent.length for extent in extents))
    return Qcow2Target(path, Layout(size, extents))


def chunks(seed: int = 1) -> dict[int, bytes]:
    """Return random chunks by their place on the disk, the short last one among them."""
    choice = random.Random(seed)
    last = SIZE // CHUNK
    places = sorted({*choice.sample(range(last), 60), last})
    return {place * CHUNK: choice.randbytes(min(CHUNK, SIZE - place * CHUNK)) for place in places}


def content(form: str, path: Path, tmp_path: Path) -> bytes:
    """Return the disk as QEMU reads it."""
    raw = tmp_path / "read-back"
    run("qemu-img", "convert", "-f", form, "-O", "raw", path, raw)
    return raw.read_bytes()


def test_threads_fill_a_thin_file(form: str, tmp_path: Path) -> None:
    """Chunks written in any order from many threads are the disk, holes stay holes, and no other file remains."""
    data = chunks()
    target = begin(form, tmp_path / "disk", [Extent(offset, len(part)) for offset, part in data.items()])
    order = random.Random(2).sample(sorted(data), len(data))
    with ThreadPoolExecutor(target.writers) as pool:
        assert list(pool.map(lambda offset: target.write(offset, memoryview(data[offset])), order)) == [None] * len(
            data
        )
    target.write_zeroes(0, SIZE)
    assert not (tmp_path / "disk").exists()
    target.finish()
    assert names(tmp_path) == ["disk"]
    expected = bytearray(-(-SIZE // 512) * 512)
    for offset, part in data.items():
        expected[offset : offset + len(part)] = part
    assert content(form, tmp_path / "disk", tmp_path).ljust(len(expected), b"\0") == expected
    status = (tmp_path / "disk").stat()
    assert status.st_blocks * 512 < SIZE // 2
    assert status.st_mode & 0o777 == 0o600
    assert form == "qcow2" or status.st_size == SIZE


@pytest.mark.parametrize("what", ["file", "folder", "link", "dangling link"])
def test_what_is_there_stays(form: str, tmp_path: Path, what: str) -> None:
    """A file, folder or symbolic link under the target's name is refused before anything is made, and stays as it was."""
    path, other = tmp_path / "disk", tmp_path / "other"
    if what == "folder":
        path.mkdir()
    elif what == "file":
        path.write_text("mine")
    else:
        path.symlink_to(other)
        if what == "link":
            other.write_text("mine")
    before = names(tmp_path)
    with pytest.raises(TargetExistsError, match="already"):
        begin(form, path, [])
    assert names(tmp_path) == before
    assert path.is_dir() or path.is_symlink() or path.read_text() == "mine"
    assert not other.exists() or other.read_text() == "mine"


def test_a_name_taken_meanwhile_is_not_replaced(form: str, tmp_path: Path) -> None:
    """Whoever takes the name during the restore keeps it; the restore fails at its end and leaves nothing."""
    target = begin(form, tmp_path / "disk", [])
    (tmp_path / "disk").write_text("theirs")
    with pytest.raises(TargetExistsError):
        target.finish()
    target.abort()
    assert names(tmp_path) == ["disk"]
    assert (tmp_path / "disk").read_text() == "theirs"


def test_a_name_taken_meanwhile_is_not_replaced_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds on file systems that know no hard links, where a free name is published too."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(new_file, "_UNNAMED", 0)
    (tmp_path / "taken").touch()
    file = NewFile(tmp_path / "disk", needed=0)
    file.write(0, b"new")
    file.publish()
    assert names(tmp_path) == ["disk", "taken"]
    assert (tmp_path / "disk").read_bytes() == b"new"
    late = NewFile(tmp_path / "late", needed=0)
    (tmp_path / "late").write_text("theirs")
    with pytest.raises(TargetExistsError):
        late.publish()
    late.discard()
    assert (tmp_path / "late").read_text() == "theirs"


def test_abort_removes_all_that_was_made(form: str, tmp_path: Path) -> None:
    """After an abort, twice, before or after the end, the folder is empty; a write that comes too late reaches no file."""
    data = [Extent(0, CHUNK)]
    target = begin(form, tmp_path / "disk", data)
    target.write(0, bytes(CHUNK))
    target.abort()
    target.abort()
    with pytest.raises(ValueError, match="closed"):
        target.write(0, bytes(CHUNK))
    assert names(tmp_path) == []
    target = begin(form, tmp_path / "disk", data)
    target.finish()
    target.abort()
    assert names(tmp_path) == []


def test_nothing_remains_of_a_killed_restore(tmp_path: Path) -> None:
    """A process that is killed in the middle of a disk leaves no file, and the space is free again."""
    program = (
        "import os, pathlib, signal, sys; from lab_backup.targets.raw_file import RawFileTarget\n"
        "target = RawFileTarget(pathlib.Path(sys.argv[1]), 10**9); target.write(0, b'x' * 10**6)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "disk")], timeout=60, check=False)
    assert killed.returncode == -9
    assert names(tmp_path) == []


def test_abort_leaves_what_took_the_place_of_the_published_file(form: str, tmp_path: Path) -> None:
    """A file that somebody put in the place of the finished one is not ours to remove."""
    target = begin(form, tmp_path / "disk", [])
    target.finish()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "theirs").rename(tmp_path / "disk")
    target.abort()
    assert (tmp_path / "disk").read_text() == "theirs"


def test_too_little_space_is_seen_first(form: str, full_disk: Path) -> None:
    """A restore larger than the free space is refused at once, with both figures, and nothing is made."""
    with pytest.raises(TargetFullError, match=r"needed, 4\.0 MiB free"):
        begin(form, full_disk / "disk", [Extent(0, 8 * MiB)])
    assert names(full_disk) == []


def test_space_that_runs_out_on_the_way(form: str, full_disk: Path) -> None:
    """Where another program fills the disk meanwhile, the error says so, and the abort gives all space back."""
    extents = [Extent(0, 3 * MiB)]
    target = begin(form, full_disk / "disk", extents)
    (full_disk / "other").write_bytes(bytes(2 * MiB))
    with pytest.raises(TargetFullError, match="no space left"):
        target.write(0, b"x" * (3 * MiB))
    target.abort()
    assert names(full_disk) == ["other"]


def test_a_missing_folder_is_named(form: str, tmp_path: Path) -> None:
    """The error names the folder that is missing, which is not made."""
    with pytest.raises(TargetError, match=r"folder .*/none does not exist"):
        begin(form, tmp_path / "none" / "disk", [Extent(0, CHUNK)])
    assert names(tmp_path) == []


def test_a_folder_without_permission(form: str, tmp_path: Path) -> None:
    """Where the user may not write, the error says that, and it counts as refused access."""
    if os.geteuid() == 0:
        folder = Path("/proc")  # refuses root too
        with pytest.raises(LabBackupError):
            begin(form, folder / "disk", [])
        return
    tmp_path.chmod(0o500)
    with pytest.raises(AccessDeniedError, match="not allowed"):
        begin(form, tmp_path / "disk", [])


def test_the_owner_is_set_before_the_file_appears(tmp_path: Path) -> None:
    """The file belongs to whom the caller named, with the mode that it named."""
    if os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    target = RawFileTarget(tmp_path / "disk", 512, owner=Owner(65534, 65534), mode=0o664)
    target.finish()
    status = (tmp_path / "disk").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 65534, 0o664)


def test_a_write_beside_the_layout_is_refused(tmp_path: Path) -> None:
    """A qcow2 target takes data only where the map has it."""
    target = Qcow2Target(tmp_path / "disk", Layout(SIZE, [Extent(0, CHUNK)]))
    with pytest.raises(LayoutError):
        target.write(CHUNK, b"x")
    target.abort()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["..", "."])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    """A target that names a folder by dots is refused."""
    with pytest.raises((TargetError, TargetExistsError)):
        NewFile(tmp_path / name, needed=0)
