"""Addresses of NFS storages, and what is mounted where."""

from pathlib import Path, PurePosixPath

import pytest

from lab_backup.errors import UsageError
from lab_backup.storage.base import StorageError
from lab_backup.storage.nfs import mounter
from lab_backup.storage.nfs.address import Address, parse
from lab_backup.storage.nfs.mounter import Mounter
from lab_backup.storage.nfs.mounts import covering, read_mounts

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:52 / /mnt/nas rw,relatime shared:60 - nfs4 nas:/export/lab rw,vers=4.2
91 22 0:53 / /mnt/with\\040blank rw - nfs nas:/other\\040place rw
92 22 0:54 /deep /mnt/part rw shared:7 master:3 - nfs4 nas:/export/big rw
93 22 0:55 / /mnt/hidden rw - nfs4 nas:/export/hidden rw
94 93 0:56 / /mnt/hidden rw - tmpfs tmpfs rw
95 22 0:57 / /mnt/fake rw - fuse nas:/export/fake rw
nonsense
96 22 x:y / /mnt/bad rw - nfs4 nas:/bad rw
"""


@pytest.mark.parametrize(
    ("source", "mount", "rest"),
    [
        ("nas:/export/lab", "/mnt/nas", "."),
        ("nas:/export/lab/a/b", "/mnt/nas", "a/b"),
        ("nas:/other place", "/mnt/with blank", "."),
        ("nas:/export/big/deep/x", "/mnt/part", "x"),
    ],
)
def test_the_mount_that_holds_it(source: str, mount: str, rest: str) -> None:
    """The longest mounted part counts, escapes are undone, and a bind mount of a part is known as that."""
    found = covering(read_mounts(MOUNTINFO), source)
    assert found is not None
    assert (found[0].path, found[1]) == (mount, PurePosixPath(rest))


@pytest.mark.parametrize(
    "source",
    [
        "nas:/export/laboratory",
        "other:/export/lab",
        "nas:/export/big/else",
        "nas:/export/hidden",
        "nas:/export/fake",
        "nas:/bad",
    ],
)
def test_what_is_not_mounted(source: str) -> None:
    """Neighbours, other servers, what another mount hides, and what is not NFS are not taken for it."""
    assert covering(read_mounts(MOUNTINFO), source) is None


def test_the_nearest_mount_counts() -> None:
    """Of two mounts that hold it the deeper one is taken."""
    both = MOUNTINFO + "97 22 0:58 / /mnt/deeper rw - nfs4 nas:/export/lab/a rw\n"
    found = covering(read_mounts(both), "nas:/export/lab/a/b")
    assert found is not None
    assert (found[0].path, str(found[1])) == ("/mnt/deeper", "b")


@pytest.mark.parametrize(
    ("url", "shown", "found"),
    [
        ("nfs://nas/export/lab", "rw", True),
        ("nfs://nas/export/lab", "rw,port=2049", True),
        ("nfs://nas:12049/export/lab", "rw", False),
        ("nfs://nas:12049/export/lab", "rw,port=12049", True),
        ("nfs://nas/export/lab", "rw,port=12049", False),
        ("nfs://NAS/export/lab", "rw", True),
    ],
)
def test_another_port_is_another_server(url: str, shown: str, found: bool) -> None:  # noqa: FBT001  a table
    """Two servers on one host are not taken for each other; capital letters in a host's name mean nothing."""
    there = read_mounts(f"90 22 0:52 / /mnt/nas rw - nfs4 Nas:/export/lab {shown}\n")
    address = parse(url)
    assert (covering(there, address.source, port=address.port) is not None) == found


@pytest.mark.parametrize(
    ("url", "shown", "refused"),
    [
        ("nfs://nas/export/lab", "rw,hard,sec=sys", None),
        ("nfs://nas/export/lab", "rw,soft,sec=sys", "soft"),
        ("nfs://nas/export/lab", "rw,softerr,sec=sys", "soft"),
        ("nfs://nas/export/lab?sec=krb5p", "rw,hard,sec=sys", "sec=sys"),
        ("nfs://nas/export/lab?sec=krb5p", "rw,hard,sec=krb5p", None),
    ],
)
def test_a_mount_that_cannot_be_relied_on_is_refused(
    url: str, shown: str, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reports as written what is not, or is less safe than its address says, is named and not used."""
    there = read_mounts(f"90 22 0:52 / /mnt/nas rw - nfs4 nas:/export/lab {shown}\n")
    monkeypatch.setattr(mounter, "mounts", lambda: there)
    if refused is None:
        assert Mounter().existing(parse(url)) == Path("/mnt/nas")
        return
    with pytest.raises(StorageError, match=refused) as told:
        Mounter().existing(parse(url))
    assert "/mnt/nas" in str(told.value)


def test_addresses() -> None:
    """Server, folder and options are what they say; the port is an option of the mount."""
    assert parse("nfs://nas/export/lab") == Address("nas", "/export/lab")
    full = parse("nfs://[fd00::1]:12049/export//lab%20one/?vers=4.2&sec=krb5p&nconnect=4")
    assert (full.source, full.options) == (
        "[fd00::1]:/export/lab one",
        ("port=12049", "vers=4.2", "sec=krb5p", "nconnect=4"),
    )
    assert full.mount_options.startswith("hard,retry=0,lookupcache=positive,nosuid,nodev,noexec,")
    assert full.mount_options.endswith(",port=12049,vers=4.2,sec=krb5p,nconnect=4")
    assert (full.parent.path, full.name, full.url) == ("/export", "lab one", "nfs://[fd00::1]:12049/export/lab one")


@pytest.mark.parametrize(
    "url",
    [
        "nfs://", "nfs://nas", "nfs://nas/", "nfs:///export", "nfs://user@nas/export", "nfs://u:secret@nas/export", "nfs://nas/a/../b", "nfs://nas/a%0Ab",
        "nfs://nas/export#x", "nfs://nas/export?soft", "nfs://nas/export?vers=5", "nfs://nas/export?vers=4,exec", "nfs://nas:99999/export", "nfs://-o/export",
        "nfs://nas;id/export", "nfs://nas/export?rsize=1,suid", "nfs://nas/export?unknown=1",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    """What is incomplete, dangerous, or would weaken a mount is refused, and no password is shown."""
    with pytest.raises(UsageError) as refused:
        parse(url)
    assert "secret" not in f"{refused.value} {refused.value.hint}"
