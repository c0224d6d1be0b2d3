"""Sealed objects: they open under their own name, in their own repository, unchanged, or not at all."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.repository.envelope import HEADER, MAX_RAW, Kind, seal, unseal
from lab_backup.repository.errors import DamagedError

KEY = bytes(range(32))
ID = bytes(range(16))
PATH = "index/0123"


def sealed(payload: bytes, path: str = PATH) -> bytes:
    """Return an object of our repository."""
    return seal(payload, kind=Kind.INDEX, path=path, repository_id=ID, key=KEY)


def opened(data: bytes) -> bytes:
    """Return what the object at `PATH` holds."""
    return unseal(data, kind=Kind.INDEX, path=PATH, repository_id=ID, key=KEY)


@given(payload=st.one_of(st.binary(max_size=2000), st.binary(max_size=50).map(lambda part: part * 1000)))
def test_round_trip(payload: bytes) -> None:
    """The payload comes back, compressed or not, and is nowhere in the object."""
    data = sealed(payload)
    assert opened(data) == payload
    assert len(payload) < 8 or payload not in data


def test_every_object_has_its_own_key() -> None:
    """Two objects of the same content have nothing in common but their headers' fixed part: salts differ."""
    first, second = sealed(b"x" * 100), sealed(b"x" * 100)
    assert first[24:56] != second[24:56]
    assert first[HEADER.size :] != second[HEADER.size :]


OBJECT = sealed(b'{"some": "json"}' * 20)


@given(position=st.integers(0, len(OBJECT) - 1), bit=st.integers(0, 7))
def test_bit_flips(position: int, bit: int) -> None:
    """A flipped bit anywhere is damage, also in the version, which no newer program wrote."""
    data = bytearray(OBJECT)
    data[position] ^= 1 << bit
    with pytest.raises(DamagedError):
        opened(bytes(data))


@given(length=st.integers(0, len(OBJECT) - 1))
def test_truncation(length: int) -> None:
    """An object cut off anywhere is damage."""
    with pytest.raises(DamagedError):
        opened(OBJECT[:length])


def test_out_of_place() -> None:
    """An object of another name, kind, repository or key does not open here."""
    for data in (
        sealed(b"x", path="index/0124"),
        sealed(b"x", path="marks/0123"),
        seal(b"x", kind=Kind.MARK, path=PATH, repository_id=ID, key=KEY),
        seal(b"x", kind=Kind.INDEX, path=PATH, repository_id=bytes(16), key=KEY),
        seal(b"x", kind=Kind.INDEX, path=PATH, repository_id=ID, key=bytes(32)),
        os.urandom(500),
        b"",
    ):
        with pytest.raises(DamagedError):
            opened(data)


def test_newer_version() -> None:
    """An object that says that it is newer is damaged: anybody can write that byte."""
    data = bytearray(os.urandom(200))
    data[:5] = b"LBSO\x02"
    with pytest.raises(DamagedError, match="version 2"):
        opened(bytes(data))


def test_giant_claim() -> None:
    """A header that claims four gigabytes is refused before anything is allocated for it."""
    data = bytearray(OBJECT)
    data[56:60] = b"\xff" * 4
    with pytest.raises(DamagedError):
        opened(bytes(data))


def test_too_large_to_seal() -> None:
    """What no reader would accept is not written."""
    with pytest.raises(ValueError, match="too many"):
        sealed(bytes(MAX_RAW + 1))
