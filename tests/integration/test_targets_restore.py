"""Disks and backups that leave a real repository: as images, over devices, and as tar files."""

import hashlib
import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab_backup.errors import LabBackupError, NotFoundError, TargetExistsError, UsageError
from lab_backup.operations.backup import backup_image
from lab_backup.operations.catalogue import find_backup
from lab_backup.operations.export import export_tar
from lab_backup.operations.progress import Silent
from lab_backup.operations.qcow2_stream import qcow2_layout, qcow2_stream
from lab_backup.operations.repositories import init_repository, open_repository
from lab_backup.operations.restore import restore_image
from lab_backup.repository.backups import Backup
from lab_backup.repository.errors import DamagedError
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.units import KiB, MiB

SIZE = 24 * MiB + 700


@pytest.fixture(params=[16 * KiB, 128 * KiB, 1 * MiB], ids=["16 KiB", "128 KiB", "1 MiB"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    """Return an open repository for each of some chunk sizes: below, above and far above a qcow2 cluster."""
    url = str(tmp_path / "repository")
    init_repository(url, passphrase=None, chunk_size=request.param, encryption=False)
    with open_repository(url, passphrase=None, cache_directory=tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def content() -> bytes:
    """Return a disk of an odd size with scattered data, a hole in the middle, and data in its last bytes."""
    choice = random.Random(7)
    disk = bytearray(SIZE)
    for _ in range(40):
        at = choice.randrange(0, 8 * MiB)
        disk[at : at + 5000] = choice.randbytes(5000)
    disk[20 * MiB : 21 * MiB] = choice.randbytes(MiB)
    disk[-100:] = choice.randbytes(100)
    return bytes(disk)


@pytest.fixture
def backup(repository: Repository, content: bytes, tmp_path: Path) -> Backup:
    """Return a backup of that disk."""
    path = tmp_path / "source.raw"
    path.write_bytes(content)
    made = backup_image(repository, path, name="source", format="raw")
    return find_backup(repository, made.backup)


class Counting(Silent):
    """Adds up the progress."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.total = 0
        self.done = 0

    def start(self, total_bytes: int | None, what: str) -> None:
        """Take the total."""
        assert what
        self.total += total_bytes or 0

    def advance(self, count: int) -> None:
        """Add."""
        self.done += count


def run(*command: str) -> None:
    """Run a tool, which must succeed."""
    subprocess.run(command, check=True, timeout=60)


def disk_of(path: Path, form: str, tmp_path: Path) -> bytes:
    """Return an image's disk as QEMU sees it, and see that QEMU finds no fault in it."""
    raw = tmp_path / "seen"
    if form == "qcow2":
        run("qemu-img", "check", "-q", str(path))
    run("qemu-img", "convert", "-f", form, "-O", "raw", str(path), str(raw))
    seen = raw.read_bytes()
    raw.unlink()
    return seen


def chunk_files(repository: Path) -> list[Path]:
    """Return the packs of a repository, largest first."""
    return sorted(
        (path for path in (repository / "packs").rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size
    )


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_comes_back(repository: Repository, backup: Backup, content: bytes, form: str, tmp_path: Path) -> None:
    """The restored image holds the disk, is thin, and the progress adds up to the whole disk."""
    to, progress = tmp_path / f"restored.{form}", Counting()
    result = restore_image(repository, backup, to=to, progress=progress)
    assert disk_of(to, form, tmp_path) == content.ljust(-(-SIZE // 512) * 512, b"\0")
    assert result.disks[0].format == form
    assert progress.done == progress.total == SIZE
    assert to.stat().st_blocks * 512 < 14 * MiB
    assert bool(result.notes) == (form == "qcow2")


def test_the_format_is_what_was_asked_for(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """A format that is named wins over the suffix; one that does not exist is refused."""
    assert restore_image(repository, backup, to=tmp_path / "a.img", format="qcow2").disks[0].format == "qcow2"
    assert (tmp_path / "a.img").read_bytes()[:4] == b"QFI\xfb"
    with pytest.raises(UsageError, match="vmdk"):
        restore_image(repository, backup, to=tmp_path / "b", format="vmdk")
    assert not (tmp_path / "b").exists()


def test_in_place_every_byte_is_that_of_the_backup(
    repository: Repository, backup: Backup, content: bytes, tmp_path: Path
) -> None:
    """What was there before is gone, also where the backup has zeroes; what lies behind the disk stays."""
    to = tmp_path / "old.raw"
    to.write_bytes(b"o" * (SIZE + 100))
    restore_image(repository, backup, to=to, in_place=True)
    assert to.read_bytes() == content + b"o" * 100


def test_in_place_is_raw_and_must_be_said(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """An existing file is never overwritten unasked, and qcow2 in place makes no sense."""
    to = tmp_path / "old.raw"
    to.write_bytes(b"o")
    with pytest.raises(TargetExistsError):
        restore_image(repository, backup, to=to)
    with pytest.raises(UsageError, match="raw"):
        restore_image(repository, backup, to=to, in_place=True, format="qcow2")
    with pytest.raises(LabBackupError, match="too small"):
        restore_image(repository, backup, to=to, in_place=True)
    assert to.read_bytes() == b"o"


def test_a_disk_that_is_not_there(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """The error lists the disks of the backup."""
    with pytest.raises(NotFoundError) as caught:
        restore_image(repository, backup, to=tmp_path / "x", disk="vdz")
    assert backup.manifest.disks[0].name in str(caught.value.hint)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_damage_is_never_restored(repository: Repository, backup: Backup, form: str, tmp_path: Path) -> None:
    """A flipped bit in stored data ends the restore, and nothing remains of it; a tar does not appear either."""
    pack = chunk_files(tmp_path / "repository")[0]
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DamagedError):
        restore_image(repository, backup, to=tmp_path / "restored", format=form)
    with pytest.raises(DamagedError):
        export_tar(repository, backup, tmp_path / "export.tar")
    assert sorted(tmp_path.iterdir()) == before


def test_damage_in_place_is_said(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """Where a restore in place fails, the user learns that the device holds a mixture."""
    for pack in chunk_files(tmp_path / "repository"):
        pack.unlink()
    to = tmp_path / "device"
    to.write_bytes(bytes(SIZE))
    with pytest.raises(LabBackupError) as caught:
        restore_image(repository, backup, to=to, in_place=True)
    assert "mixture" in str(caught.value.hint)


def test_any_part_of_the_stream_is_a_part_of_the_image(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """The stream is the very file that a restore writes, from any byte to any byte."""
    restore_image(repository, backup, to=tmp_path / "whole.qcow2")
    whole = (tmp_path / "whole.qcow2").read_bytes()
    reader, entry = Reader(repository), backup.manifest.disks[0]
    layout = qcow2_layout(reader, entry)
    assert layout.file_size == len(whole)
    choice = random.Random(3)
    spans = [(0, None), (layout.data_offset, layout.data_offset + 1), (len(whole) - 1, len(whole)), (5, 5)]
    spans += [tuple(sorted(choice.choices(range(len(whole)), k=2))) for _ in range(20)]  # type: ignore[misc]  # two of them
    for start, end in spans:
        streamed = b"".join(qcow2_stream(reader, entry, layout, start, end))
        assert hashlib.sha256(streamed).digest() == hashlib.sha256(whole[start:end]).digest()


def test_an_export_is_readable_without_us(
    repository: Repository, backup: Backup, content: bytes, tmp_path: Path
) -> None:
    """GNU tar unpacks it, QEMU reads the disk, the manifest is JSON, and progress and size add up."""
    to, progress = tmp_path / "export.tar", Counting()
    result = export_tar(repository, backup, to, progress=progress)
    name = backup.manifest.disks[0].name
    assert result.members == ("manifest.json", f"{name}.qcow2")
    assert result.bytes_written == to.stat().st_size
    assert progress.done == progress.total
    out = tmp_path / "out"
    out.mkdir()
    run("tar", "-xf", str(to), "-C", str(out))
    assert disk_of(out / f"{name}.qcow2", "qcow2", tmp_path) == content.ljust(-(-SIZE // 512) * 512, b"\0")
    assert json.loads((out / "manifest.json").read_text())["backup"] == backup.id
    with tarfile.open(to) as archive:
        assert all(member.mode == 0o600 for member in archive)


def test_an_export_replaces_nothing(repository: Repository, backup: Backup, tmp_path: Path) -> None:
    """A file under the name of the export stays as it is."""
    to = tmp_path / "export.tar"
    to.write_text("mine")
    with pytest.raises(TargetExistsError):
        export_tar(repository, backup, to)
    assert to.read_text() == "mine"
