"""What the header of a qcow2 image may make us believe."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import LabBackupError
from lab_backup.sources.image.errors import UnsafeImageError
from lab_backup.sources.image.qcow2 import Header, read_header

IMAGE = Path("/images/guest.qcow2")


def header(
    *, version: int = 3, backing: bytes = b"", extensions: bytes = b"", incompatible: int = 0, encryption: int = 0
) -> bytes:
    """Return the first cluster of an image."""
    at = 400 if backing else 0
    first = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, at, len(backing), 16, 1 << 30, encryption, 2, 0x30000, 0x10000, 1, 3, 0
    )
    rest = struct.pack(">QQQII", incompatible, 0, 0, 4, 104) if version == 3 else b""
    start = (first + rest + extensions + bytes(8)).ljust(400, b"\0") + backing
    return start.ljust(65536, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    """Return one header extension, padded as the format wants it."""
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


BACKING_FORMAT, FEATURE_NAMES, DATA_FILE = 0xE2792ACA, 0x6803F857, 0x44415441


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_image_names_nothing(version: int) -> None:
    """An image without backing file names no other file, in both versions; its snapshots are counted."""
    assert read_header(header(version=version), IMAGE) == Header(None, None, None, encrypted=False, snapshots=3)


@pytest.mark.parametrize("version", [2, 3])
def test_names_are_found_among_other_extensions(version: int) -> None:
    """Backing file and its format are read wherever they stand among the extensions."""
    extensions = extension(FEATURE_NAMES, b"x" * 50) + extension(BACKING_FORMAT, b"raw")
    found = read_header(header(version=version, backing=b"base.raw", extensions=extensions), IMAGE)
    assert (found.backing, found.backing_format) == ("base.raw", "raw")


def test_a_data_file_counts_only_with_its_feature_bit() -> None:
    """QEMU opens the external data file only where the feature bit is set, and so the name counts only then."""
    extensions = extension(DATA_FILE, b"data.raw")
    assert read_header(header(extensions=extensions, incompatible=4), IMAGE).data_file == "data.raw"
    assert read_header(header(extensions=extensions), IMAGE).data_file is None


def test_encryption_is_seen() -> None:
    """An encrypted image says so."""
    assert read_header(header(encryption=2), IMAGE).encrypted


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"QFI\xfb",
        b"no image at all" * 100,
        header(version=1),
        header(version=4),
        header()[:103],
        header(backing=b"x" * 1024),
        header(extensions=struct.pack(">II", 1, 0xFFFFFFF0)),
        struct.pack(">4sIQIIQI", b"QFI\xfb", 3, 2**63, 10, 16, 0, 0).ljust(65536, b"\0"),
        struct.pack(">4sIQIIQI", b"QFI\xfb", 3, 0, 0, 63, 0, 0).ljust(65536, b"\0"),
    ],
)
def test_headers_that_make_no_sense_are_refused(start: bytes) -> None:
    """No header, another version, and numbers that lead outside of the cluster are errors, not guesses."""
    with pytest.raises(UnsafeImageError, match=r"guest\.qcow2"):
        read_header(start, IMAGE)


@given(st.binary(max_size=600), st.integers(0, 400))
def test_no_bytes_crash_the_reader(noise: bytes, at: int) -> None:
    """Whatever stands in the header, the answer is a header or an expected error."""
    start = bytearray(header(backing=b"base", extensions=extension(BACKING_FORMAT, b"qcow2")))
    start[4 + at : 4 + at + len(noise)] = noise
    with suppress(LabBackupError):
        found = read_header(bytes(start), IMAGE)
        assert len(found.backing or "") <= 1023
