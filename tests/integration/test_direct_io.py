"""Writing past the page cache: every byte arrives, whatever its place, and wherever the kernel refuses."""

import errno
import os
import random
from pathlib import Path

import pytest

from lab_backup.direct_io import ALIGNMENT, SMALLEST, aligned_buffer, open_direct, write_at
from lab_backup.units import MiB


@pytest.mark.parametrize("refused", [False, True])
def test_every_byte_arrives(tmp_path: Path, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001  a parameter of the test
    """Aligned and unaligned places, lengths and memory give the same file as ordinary writes, also where direct writes are refused."""
    real, source = os.pwrite, random.Random(1)
    expected = bytearray(4 * MiB)
    path = tmp_path / "file"
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    direct = open_direct(number)
    if refused:

        def refuse(file: int, data: memoryview, offset: int) -> int:
            if file == direct:
                raise OSError(errno.EINVAL, "refused")
            return real(file, data, offset)

        monkeypatch.setattr(os, "pwrite", refuse)
    memory = memoryview(aligned_buffer(MiB))
    for _ in range(40):
        offset = source.randrange(3 * MiB) // source.choice([1, ALIGNMENT]) * source.choice([1, ALIGNMENT])
        offset = min(offset, 3 * MiB)
        length = source.choice([0, 1, ALIGNMENT, SMALLEST, SMALLEST + 1, MiB])
        start = source.choice([0, 1]) if length < MiB else 0
        data = memory[start : start + length]
        data[:] = source.randbytes(length)
        write_at(number, direct, offset, data)
        expected[offset : offset + length] = data
    os.ftruncate(number, len(expected))
    os.fsync(number)
    os.close(number)
    if direct is not None:
        os.close(direct)
    assert path.read_bytes() == expected


def test_errors_of_the_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk during a direct write is an error, and not written elsewhere instead."""
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="full"):
            write_at(number, number, 0, bytes(SMALLEST))
    finally:
        os.close(number)


def test_a_file_that_may_not_be_opened_again(tmp_path: Path) -> None:
    """What is not a file of a disk has no direct way, and writing to it works all the same."""
    reading, writing = os.pipe()
    try:
        assert open_direct(reading) is None
    finally:
        os.close(reading)
        os.close(writing)
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_at(number, None, 0, b"abc")
    os.close(number)
    assert (tmp_path / "file").read_bytes() == b"abc"
