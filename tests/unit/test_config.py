"""The object `config`: input that nobody vouches for until its seal was checked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.repository import config as module
from lab_backup.repository.config import Config, check_chunk_size, decode
from lab_backup.repository.errors import DamagedError, NewerVersionError, NotARepositoryError
from lab_backup.units import KiB, MiB

KEY = bytes(range(32))
CONFIG = Config(
    format=module.FORMAT,
    version=1,
    id="0123456789abcdef0123456789abcdef",
    created="2026-01-01T00:00:00Z",
    encryption="aes-256-gcm",
    chunk_size=128 * KiB,
    compression="zstd:3",
    grace=86400,
).sealed(KEY)


def changed(**fields: object) -> bytes:
    """Return the stored config with some fields replaced, the seal left as it was."""
    return json.dumps(json.loads(CONFIG.encode()) | fields).encode()


def test_round_trip() -> None:
    """What was sealed reads back and passes."""
    found = decode(CONFIG.encode(), "u")
    assert found == CONFIG
    found.verify(KEY)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk_size": 16 * KiB},
        {"grace": 0},
        {"compression": "none"},
        {"encryption": "none"},
        {"created": "x"},
        {"seal": ""},
        {"seal": "é"},
        {"version": 0},
    ],
)
def test_tampered(fields: dict[str, object]) -> None:
    """Whatever is changed without the key, the seal or the decoder notices."""
    with pytest.raises(DamagedError):
        decode(changed(**fields), "u").verify(KEY)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk_size": 0},
        {"chunk_size": -(128 * KiB)},
        {"chunk_size": 100_000},
        {"chunk_size": 1 << 60},
        {"chunk_size": 10**30},
        {"chunk_size": "128KiB"},
        {"chunk_size": True},
        {"grace": -1},
        {"grace": 1.5},
        {"compression": "lz4"},
        {"compression": "zstd:" + "9" * 5000},
        {"compression": "zstd:²"},
        {"encryption": "rot13"},
        {"id": "../../etc"},
        {"id": "0" * 31},
        {"id": "0" * 32 + "\n"},
        {"id": None},
    ],
)
def test_malformed(fields: dict[str, object]) -> None:
    """Fields that make no sense are damage, found before any key is needed."""
    with pytest.raises(DamagedError):
        decode(changed(**fields), "u")


@pytest.mark.parametrize("version", [2, 10**30, "1", None])
def test_newer_version(version: object) -> None:
    """A version that we do not know is named as the reason."""
    with pytest.raises(NewerVersionError):
        decode(changed(version=version), "u")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": "\xff"}', b"[" * 60_000, b'{"format": "git"}']
)
def test_not_a_repository(data: bytes) -> None:
    """Files of others that happen to be called config are told from ours."""
    with pytest.raises(NotARepositoryError):
        decode(data, "u")


@given(position=st.integers(0, len(CONFIG.encode()) - 1), bit=st.integers(0, 7))
def test_bit_flips(position: int, bit: int) -> None:
    """A flipped bit anywhere is found when the repository is opened."""
    data = bytearray(CONFIG.encode())
    data[position] ^= 1 << bit
    with pytest.raises(LabBackupError):
        decode(bytes(data), "u").verify(KEY)


@pytest.mark.parametrize("size", [0, -1, 8 * KiB, 32 * MiB, 100_000, 16 * KiB + 1])
def test_chunk_sizes_that_cannot_be(size: int) -> None:
    """Only powers of two in the range are chunk sizes."""
    with pytest.raises(UsageError):
        check_chunk_size(size)


def test_chunk_sizes_that_can_be() -> None:
    """Both ends of the range are allowed."""
    assert [check_chunk_size(size) for size in (16 * KiB, 16 * MiB)] == [16 * KiB, 16 * MiB]
