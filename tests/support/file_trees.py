"""Real trees of files for tests: made of plans that Hypothesis draws, and judged by GNU tar."""

import hashlib
import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from lab_backup.filetree import FileKind

_NANOSECONDS = 10**9
_NO_VERSION_4_GROUP = struct.pack("<I", 2)  # POSIX ACLs as extended attributes, <linux/posix_acl_xattr.h>

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep, <linux/capability.h>


def access_list(user: int, owner: int = 6, mask: int = 6) -> bytes:
    """Return an ACL that lets `user` read and execute."""
    nobody = 2**32 - 1
    entries = [(1, owner, nobody), (2, 5, user), (4, 4, nobody), (16, mask, nobody), (32, 0, nobody)]
    return _NO_VERSION_4_GROUP + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@dataclass
class Node:
    """What to make. `data` are pieces of a file's content, an int being a hole of that many bytes."""

    kind: FileKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    data: list[bytes | int] = field(default_factory=list)
    target: bytes = b"target"
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, "Node"] = field(default_factory=dict)
    pick: int = 0  # of a hard link: which of the files made so far


_names = st.binary(min_size=1, max_size=12).filter(lambda name: name not in {b".", b".."} and not set(name) & {0, 47})
_odd_names = st.sampled_from(
    [b"a", b"a.b", b"a-b", b"a b", b"-rf", b"\xff\xfe", b"new\nline", b"x" * 255, b"\x1b[31m", "ü".encode(), b"a!"]
)
_ids = st.sampled_from([0, 1, 1000, 65534, 65535, 65536, 70_000, 2**31, 2**32 - 2])
_values = st.binary(max_size=20)
_common = {
    "uid": _ids,
    "gid": _ids,
    "mtime_ns": st.integers(-(2**31) * _NANOSECONDS, (2**33) * _NANOSECONDS),
}
_labels = st.dictionaries(st.sampled_from([b"trusted.one", b"trusted.two", b"security.test"]), _values, max_size=2)
_lists = st.builds(access_list, _ids, st.integers(0, 7), st.integers(0, 7))
_file_xattrs = st.fixed_dictionaries(
    {},
    optional={
        b"user.empty": _values,
        b"user.\xff\xfe": _values,
        b"trusted.overlay.metacopy": _values,
        b"security.capability": st.just(CAPABILITY),
        ACCESS: _lists,
    },
)
_directory_xattrs = st.fixed_dictionaries(
    {},
    optional={b"user.name": _values, b"trusted.overlay.opaque": st.just(b"y"), ACCESS: _lists, DEFAULT: _lists},
)
_pieces = st.lists(st.binary(max_size=100) | st.integers(1, 300_000) | st.just(bytes(5000)), max_size=4)
_leaves = st.one_of(
    st.builds(Node, st.just(FileKind.FILE), st.integers(0, 0o7777), data=_pieces, xattrs=_file_xattrs, **_common),
    st.builds(Node, st.just(FileKind.SYMLINK), target=st.binary(min_size=1, max_size=80).filter(lambda b: 0 not in b), xattrs=_labels, **_common),
    st.builds(Node, st.just(FileKind.HARDLINK), pick=st.integers(0, 100)),
    st.builds(Node, st.sampled_from([FileKind.FIFO, FileKind.SOCKET]), st.integers(0, 0o7777), xattrs=_labels, **_common),
    st.builds(Node, st.sampled_from([FileKind.CHARACTER, FileKind.BLOCK]), st.integers(0, 0o7777), device=st.sampled_from([(0, 0), (1, 3), (8, 1), (4095, 1_048_575)]), xattrs=_labels, **_common),
)  # fmt: skip


def _directory(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        st.just(FileKind.DIRECTORY),
        st.integers(0, 0o7777),
        xattrs=_directory_xattrs,
        children=st.dictionaries(_names | _odd_names, children, max_size=5),
        **_common,
    )


trees: st.SearchStrategy[Node] = _directory(st.recursive(_leaves, _directory, max_leaves=12))
"""Directories with anything in them."""


def make(root: Path, node: Node) -> None:
    """Make the tree `node` at `root`, which is not there yet."""
    _make(os.fsencode(root), node, [])


def _make(path: bytes, node: Node, files: list[bytes]) -> None:
    if node.kind is FileKind.HARDLINK:
        if files:
            os.link(files[node.pick % len(files)], path, follow_symlinks=False)
        return
    _create(path, node)
    for name, child in node.children.items():
        _make(path + b"/" + name, child, files)
    if node.kind is not FileKind.DIRECTORY:
        files.append(path)
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    if node.kind is not FileKind.SYMLINK:
        as_path(path).chmod(_mode(path, node))
    os.utime(path, ns=(0, node.mtime_ns), follow_symlinks=False)


def _create(path: bytes, node: Node) -> None:
    match node.kind:
        case FileKind.DIRECTORY:
            as_path(path).mkdir(0o700)
        case FileKind.FILE:
            _write(path, node.data)
        case FileKind.SYMLINK:
            as_path(path).symlink_to(os.fsdecode(node.target))
        case FileKind.SOCKET:
            os.mknod(path, stat.S_IFSOCK)
        case FileKind.FIFO:
            os.mkfifo(path)
        case FileKind.CHARACTER:
            os.mknod(path, stat.S_IFCHR, os.makedev(*node.device))
        case FileKind.BLOCK:
            os.mknod(path, stat.S_IFBLK, os.makedev(*node.device))
        case FileKind.HARDLINK:
            raise AssertionError("made by its first name")


def _mode(path: bytes, node: Node) -> int:
    """Return the mode to set: of a file with an ACL, the permissions are the list's."""
    return node.mode if ACCESS not in node.xattrs else node.mode & ~0o777 | as_path(path).stat().st_mode & 0o777


def as_path(path: bytes) -> Path:
    """Return a Path of any bytes."""
    return Path(os.fsdecode(path))


def _write(path: bytes, data: list[bytes | int]) -> None:
    with as_path(path).open("xb") as file:
        for piece in data:
            if isinstance(piece, int):
                file.seek(piece, os.SEEK_CUR)
            else:
                file.write(piece)
        file.truncate(file.tell())


def judged_by_tar(root: Path) -> list[object]:
    """Return all that GNU tar finds in `root`: contents, links, owners, modes, times in nanoseconds, attributes, ACLs.

    Sockets are what it leaves out.
    """
    command = ["tar", "--create", "--format=pax", "--sort=name", "--numeric-owner", "--acls", "--xattrs"]
    command += ["--xattrs-include=*", "--warning=no-file-ignored", "--pax-option=delete=atime,delete=ctime"]
    command += ["--directory", str(root), "."]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return [_judgement(archive, entry) for entry in archive]


def _judgement(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> object:
    content = archive.extractfile(entry) if entry.isreg() else None
    fields = (entry.name, entry.type, entry.mode, entry.uid, entry.gid, entry.mtime, entry.linkname, entry.size)
    device = (entry.devmajor, entry.devminor)
    return (fields, device, sorted(entry.pax_headers.items()), content and hashlib.sha256(content.read()).digest())


@contextmanager
def unprivileged(uid: int = 12345) -> Iterator[None]:
    """Act as a user without any rights, for a while; files that are open stay so."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
