"""Trees of files read and restored again: nothing is lost, nothing is made elsewhere."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings

from lab_backup.errors import TargetExistsError
from lab_backup.filetree import FileKind, FileRecord
from lab_backup.sources.files.compare import differences
from lab_backup.sources.files.tree import LocalFileTree
from lab_backup.targets.errors import TargetError, TargetFullError
from lab_backup.targets.files.errors import UnsafeTreeError
from lab_backup.targets.files.restore import restore_tree
from lab_backup.targets.files.target import FileTreeTarget
from lab_backup.units import MiB
from support.file_trees import (
    ACCESS,
    CAPABILITY,
    DEFAULT,
    Node,
    access_list,
    judged_by_tar,
    make,
    trees,
    unprivileged,
)


def copy(source: Path, to: Path, *, devices: bool = True) -> list[str]:
    """Restore the tree at `source` directly, and return all warnings."""
    with LocalFileTree(source) as tree, FileTreeTarget(to, devices=devices) as target:
        restore_tree(tree, target)
        target.finish()
        return [*tree.warnings, *target.warnings]


def unlike(first: Path, second: Path) -> list[str]:
    """Return the differences between two folders."""
    with LocalFileTree(first) as one, LocalFileTree(second) as two:
        return [str(difference) for difference in differences(one, two)]


@settings(max_examples=60)
@given(tree=trees)
def test_any_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Node) -> None:
    """Whatever a tree holds, its copy is the same to our own comparer and to GNU tar, byte by byte and in nanoseconds."""
    folder = tmp_path_factory.mktemp("tree")
    make(folder / "source", tree)
    assert copy(folder / "source", folder / "copy") == []
    assert unlike(folder / "source", folder / "copy") == []
    assert judged_by_tar(folder / "source") == judged_by_tar(folder / "copy")


def record(
    path: bytes, kind: FileKind, target: bytes = b"", *, uid: int = 0, mtime_ns: int = 0, major: int = 0
) -> FileRecord:
    """Return a record of somebody who may do nothing special."""
    return FileRecord(path=path, kind=kind, mode=0o755, target=target, uid=uid, mtime_ns=mtime_ns, major=major)


ROOT = record(b"", FileKind.DIRECTORY)


def test_every_kind_of_metadata_at_once(tmp_path: Path) -> None:
    """Set-user-id, capabilities, ACLs, overlay marks, large ids and times before 1970 are there after a restore, looked at by hand."""
    top = Node(
        FileKind.DIRECTORY, 0o1777, 70_000, 4_000_000_000, -1, xattrs={DEFAULT: access_list(1000)},
        children={
            b"suid": Node(FileKind.FILE, 0o6755, 65_536, 65_537, 1_700_000_000_123_456_789, [b"x"]),
            b"capable": Node(FileKind.FILE, 0o755, 5, 6, data=[b"y"], xattrs={b"security.capability": CAPABILITY}),
            b"listed": Node(FileKind.FILE, 0o640, 5, 6, xattrs={ACCESS: access_list(70_000)}),
            b"link": Node(FileKind.SYMLINK, 0o777, 70_000, 1, -5, target=b"/no\xffwhere//", xattrs={b"trusted.a": b"b"}),
            b"opaque": Node(FileKind.DIRECTORY, 0, 1, 2, 3, xattrs={b"trusted.overlay.opaque": b"y"}),
            b"gone": Node(FileKind.CHARACTER, 0, device=(0, 0)),
            b"disk": Node(FileKind.BLOCK, 0o660, 0, 6, device=(8, 300)),
        },
    )  # fmt: skip
    make(tmp_path / "source", top)
    assert copy(tmp_path / "source", tmp_path / "copy") == []
    to = tmp_path / "copy"
    status = to.lstat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o1777, 70_000, 4_000_000_000)
    assert status.st_mtime_ns == -1
    assert os.getxattr(to, DEFAULT) == access_list(1000)
    suid = (to / "suid").lstat()
    assert (suid.st_mode & 0o7777, suid.st_uid, suid.st_gid) == (0o6755, 65_536, 65_537)
    assert suid.st_mtime_ns == 1_700_000_000_123_456_789
    assert os.listxattr(to / "suid") == []  # nothing inherited from the folder's default list
    assert os.getxattr(to / "capable", "security.capability") == CAPABILITY
    assert os.getxattr(to / "listed", ACCESS) == os.getxattr(tmp_path / "source" / "listed", ACCESS)
    link = (to / "link").lstat()
    # A Path would tidy the target up.
    assert os.readlink(os.fsencode(to / "link")) == b"/no\xffwhere//"  # noqa: PTH115  bytes as they are
    assert (link.st_uid, link.st_mtime_ns) == (70_000, -5)
    assert os.getxattr(to / "link", "trusted.a", follow_symlinks=False) == b"b"
    assert (to / "opaque").lstat().st_mode & 0o7777 == 0
    assert os.getxattr(to / "opaque", "trusted.overlay.opaque") == b"y"
    assert (to / "gone").lstat().st_rdev == 0
    assert (to / "gone").is_char_device()
    assert (to / "disk").lstat().st_rdev == os.makedev(8, 300)


def test_hard_links_are_one_file_again(tmp_path: Path) -> None:
    """Names of one file, also of a symbolic link and across directories, are names of one file after a restore."""
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "one").write_bytes(b"content")
    (source / "a" / "link").symlink_to("one")
    for name in ("two", "a/three"):
        (source / name).hardlink_to(source / "a" / "one")
    os.link(source / "a" / "link", source / "link", follow_symlinks=False)
    with LocalFileTree(source) as tree:
        kinds = [(entry.path, entry.kind.value, entry.target) for entry in tree.records()]
    assert kinds == [
        (b"", "directory", b""),
        (b"a", "directory", b""),
        (b"a/link", "symlink", b"one"),
        (b"a/one", "file", b""),
        (b"a/three", "hardlink", b"a/one"),
        (b"link", "hardlink", b"a/link"),
        (b"two", "hardlink", b"a/one"),
    ]
    assert copy(source, tmp_path / "copy") == []
    inodes = {(tmp_path / "copy" / name).lstat().st_ino for name in ("two", "a/three", "a/one")}
    assert len(inodes) == 1
    assert (tmp_path / "copy" / "link").lstat().st_ino == (tmp_path / "copy" / "a" / "link").lstat().st_ino
    assert unlike(source, tmp_path / "copy") == []


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A file of 1 TiB with a little data is copied in no time, has its data where it was, and takes no more space."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"in the middle")
        file.truncate((1 << 40) + 123)
    (source / "empty").touch()
    (source / "hole").touch()
    os.truncate(source / "hole", 10_000_000)
    assert copy(source, tmp_path / "copy") == []
    for name in ("sparse", "hole", "empty"):
        there, back = (source / name).stat(), (tmp_path / "copy" / name).stat()
        assert (back.st_size, back.st_blocks) == (there.st_size, there.st_blocks)
    with (tmp_path / "copy" / "sparse").open("rb") as file:
        file.seek((1 << 30) - 5)
        assert file.read(23) == bytes(5) + b"in the middle" + bytes(5)
    assert unlike(source, tmp_path / "copy") == []


def deep(root: Path, levels: int) -> None:
    """Make folders in each other, with a file in each, whose path is too long for any system call."""
    root.mkdir()
    number = os.open(root, os.O_RDONLY)
    try:
        for level in range(levels):
            os.mkdir("d" * 50, dir_fd=number)
            below = os.open("d" * 50, os.O_RDONLY, dir_fd=number)
            os.close(os.open("z", os.O_WRONLY | os.O_CREAT, dir_fd=number))
            os.utime("d" * 50, ns=(0, level), dir_fd=number)
            os.close(number)
            number = below
    finally:
        os.close(number)


def test_deep_trees_come_back_and_go_away_again(tmp_path: Path) -> None:
    """Paths of 15,000 bytes in 300 levels, more than are held open at once, are read, restored, compared, and removed when aborted."""
    deep(tmp_path / "source", 300)
    assert copy(tmp_path / "source", tmp_path / "copy") == []
    assert unlike(tmp_path / "source", tmp_path / "copy") == []
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the descriptor that lists is itself one of them, each time
    with LocalFileTree(tmp_path / "source") as tree:
        assert sum(1 for _ in tree.records()) == 601
        assert sum(1 for _ in tree.contents(tree.records())) == 300
        target = FileTreeTarget(tmp_path / "undone")
        restore_tree(tree, target)
    target.abort()
    target.abort()
    assert not (tmp_path / "undone").exists()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


@pytest.mark.parametrize(
    "forged",
    [
        [record(b"../out", FileKind.FIFO)],
        [record(b"/out", FileKind.FIFO)],
        [record(b"a/../../out", FileKind.FIFO)],
        [record(b".", FileKind.DIRECTORY)],
        [record(b"..", FileKind.DIRECTORY), record(b"../out", FileKind.FIFO)],
        [record(b"a//out", FileKind.FIFO)],
        [record(b"a\0b", FileKind.FIFO)],
        [record(b"a", FileKind.SYMLINK, b"../outside"), record(b"a/out", FileKind.FIFO)],
        [record(b"a", FileKind.SYMLINK, b"../outside"), record(b"a", FileKind.DIRECTORY), record(b"a/out", FileKind.FIFO)],
        [record(b"a", FileKind.SYMLINK, b"../outside"), record(b"b", FileKind.HARDLINK, b"a/secret")],
        [record(b"b", FileKind.HARDLINK, b"../outside/secret")],
        [record(b"b", FileKind.HARDLINK, b"/etc/hostname")],
        [record(b"b", FileKind.HARDLINK, b"c")],
        [record(b"b", FileKind.HARDLINK, b"")],
        [record(b"b", FileKind.FIFO), record(b"a", FileKind.FIFO)],
        [record(b"a", FileKind.FIFO), record(b"a", FileKind.FIFO)],
        [record(b"a/b", FileKind.FIFO)],
        [record(b"a", FileKind.SYMLINK, b"")],
        [record(b"a", FileKind.SYMLINK, b"x\0y")],
        [ROOT],
    ],
    ids=lambda forged: " ".join(f"{entry.kind.value} {entry.path!r}" for entry in forged),
)  # fmt: skip
def test_forged_records_make_nothing_elsewhere(tmp_path: Path, forged: list[FileRecord]) -> None:
    """Records that would lead out of the folder, or to something restored before, are refused; nothing is kept, nothing is outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")

    def restore() -> None:
        with FileTreeTarget(tmp_path / "to", devices=True) as target:
            target.add(ROOT)
            for entry in forged:
                target.add(entry)

    with pytest.raises(UnsafeTreeError, match="the backup is not restored") as caught:
        restore()
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["outside", "secret"]
    assert (outside / "secret").stat().st_nlink == 1


def test_a_restore_does_not_follow_what_is_swapped_meanwhile(tmp_path: Path) -> None:
    """When somebody puts a symbolic link in the place of a restored folder, what comes next goes into the folder, not where the link leads."""
    (tmp_path / "outside").mkdir()
    with FileTreeTarget(tmp_path / "to") as target:
        target.add(ROOT)
        target.add(record(b"a", FileKind.DIRECTORY))
        (tmp_path / "to" / "a").rename(tmp_path / "to" / "moved")
        (tmp_path / "to" / "a").symlink_to(tmp_path / "outside")
        with target.file(record(b"a/f", FileKind.FILE)) as writer:
            writer.write(0, b"data")
        with pytest.raises(UnsafeTreeError):
            target.add(record(b"a/g", FileKind.HARDLINK, b"a/f"))
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "to").exists()


def test_something_is_in_the_way(tmp_path: Path) -> None:
    """A folder with something in it, a file and a symbolic link are refused and stay as they are."""
    full = tmp_path / "full"
    full.mkdir(mode=0o751)
    (full / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("full", "file", "link"):
        with pytest.raises(TargetExistsError):
            FileTreeTarget(tmp_path / name)
    with pytest.raises(TargetError, match="does not exist"):
        FileTreeTarget(tmp_path / "no" / "folder")
    assert full.stat().st_mode & 0o777 == 0o751
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert (tmp_path / "link").is_symlink()


def test_an_aborted_restore_leaves_an_empty_folder_as_it_was(tmp_path: Path) -> None:
    """A folder that was there before keeps owner, mode and ACLs and holds nothing, also after folders that nobody may enter."""
    folder = tmp_path / "volume"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    os.setxattr(folder, DEFAULT, access_list(1000))
    folder.chmod(0o2755)
    with FileTreeTarget(folder) as target:
        assert folder.stat().st_mode & 0o7777 == 0o700  # nobody looks in before all is in its place
        target.add(ROOT)
        target.add(FileRecord(path=b"a", kind=FileKind.DIRECTORY, mode=0))
        target.add(record(b"a/b", FileKind.FIFO))
        target.add(record(b"c", FileKind.FIFO))
    status = folder.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 1235, 0o2755)
    assert os.getxattr(folder, DEFAULT) == access_list(1000)
    assert list(folder.iterdir()) == []


def test_a_finished_restore_can_be_taken_back(tmp_path: Path) -> None:
    """When a later step fails, what was finished is removed as well."""
    target = FileTreeTarget(tmp_path / "to")
    target.add(ROOT)
    target.add(record(b"a", FileKind.FIFO))
    target.finish()
    target.abort()
    assert not (tmp_path / "to").exists()


def test_device_nodes_are_made_only_when_asked_for(tmp_path: Path) -> None:
    """Without being asked, no device is made, nor another name of one; a warning names them. An overlay's whiteout gives no access."""
    make(
        tmp_path / "source",
        Node(FileKind.DIRECTORY, children={
            b"null": Node(FileKind.CHARACTER, device=(1, 3)), b"other": Node(FileKind.HARDLINK),
            b"whiteout": Node(FileKind.CHARACTER, device=(0, 0)),
        }),
    )  # fmt: skip
    assert copy(tmp_path / "source", tmp_path / "copy", devices=False) == [
        "device nodes left out, since they were not asked for (1): null",
        "other names of files that were left out (1): other",
    ]
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["whiteout"]


def test_who_may_not_set_owners_is_told(short_directory: Path) -> None:
    """A restore by a user without rights brings back all else, lends nobody those rights, and says once for each cause what it could not set."""
    make(
        short_directory / "source",
        Node(FileKind.DIRECTORY, 0o755, 12345, 12345, children={
            **{b"%02d" % number: Node(FileKind.FILE, 0o4755, data=[b"x"]) for number in range(12)},
            b"closed": Node(FileKind.DIRECTORY, 0o0, 12345, 12345, 7, children={b"a": Node(FileKind.FILE, 0o400, 12345, 12345, 5, [b"y"], xattrs={b"user.a": b"b"})}),
            b"linked": Node(FileKind.HARDLINK, pick=12),
            b"trusted": Node(FileKind.FILE, 0o644, 12345, 12345, xattrs={b"trusted.x": b"y"}),
        }),
    )  # fmt: skip
    short_directory.chmod(0o777)
    with LocalFileTree(short_directory / "source") as tree:
        records = list(tree.records())
        with unprivileged(), FileTreeTarget(short_directory / "copy") as target:
            for entry in records:
                if entry.kind is FileKind.FILE:
                    with target.file(entry) as writer:
                        writer.write(0, b"z")
                else:
                    target.add(entry)
            target.finish()
    copied = short_directory / "copy"
    first = ", ".join(f"{number:02}" for number in range(10))
    assert target.warnings == [
        f"the owner could not be set: Operation not permitted (12): {first} and 2 more",
        f"set-user-id and set-group-id left out, since the owner could not be set (12): {first} and 2 more",
        "the extended attribute trusted.x could not be set: Operation not permitted (1): trusted",
    ]
    assert (copied / "00").stat().st_mode & 0o7777 == 0o755
    closed = (copied / "closed").stat()
    assert (closed.st_mode & 0o7777, closed.st_mtime_ns) == (0, 7)
    assert (copied / "closed" / "a").stat().st_mode & 0o7777 == 0o400
    assert os.getxattr(copied / "closed" / "a", "user.a") == b"b"
    assert (copied / "linked").samefile(copied / "closed" / "a")


def test_impossible_values_become_warnings(tmp_path: Path) -> None:
    """Ids, times and device numbers that no system has do not end a restore, and never mean "leave it as it is"."""
    with FileTreeTarget(tmp_path / "to", devices=True) as target:
        target.add(ROOT)
        target.add(record(b"a", FileKind.FIFO, uid=2**32 - 1))
        target.add(record(b"b", FileKind.FIFO, uid=2**70, mtime_ns=2**100))
        target.add(record(b"c", FileKind.CHARACTER, major=2**70))
        target.finish()
    assert target.warnings == [
        "the owner could not be set: this system has no such value (2): a, b",
        "the time of modification could not be set: this system has no such value (1): b",
        "could not be made: this system has no such value (1): c",
    ]


def test_a_full_disk_ends_the_restore_and_leaves_nothing(tmp_path: Path) -> None:
    """Without space the restore says so, and what it had written is gone."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], check=True, timeout=60)  # noqa: S607 - the one on the path
    try:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "large").write_bytes(os.urandom(4 * MiB))
        with pytest.raises(TargetFullError):
            copy(tmp_path / "source", small / "to")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=60)  # noqa: S607 - the one on the path
