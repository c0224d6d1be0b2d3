"""Cutting by content: it depends on nothing but the content and the repository's own number."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_backup.repository.chunking import MAX_AVERAGE, Chunking, Cutter, chunking_for, chunking_seed
from lab_backup.repository.config import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE
from lab_backup.repository.keys import RepositoryKeys
from lab_backup.units import KiB

SMALL = Chunking(4 * KiB, 16 * KiB, 64 * KiB)


def cut(parts: list[bytes], chunking: Chunking = SMALL, seed: int = 1) -> list[bytes]:
    """Return the chunks of what arrives in these parts."""
    chunks: list[bytes] = []

    def emit(block: bytearray, view: memoryview, lengths: list[int]) -> None:
        at = 0
        for length in lengths:
            chunks.append(bytes(view[at : at + length]))
            at += length
        assert at == len(view)
        cutter.buffers.give(block)

    cutter = Cutter(chunking, seed, emit)
    for part in parts:
        cutter.feed(part)
    cutter.end()
    return chunks


DATA = random.Random(5).randbytes(5_000_000)


@settings(deadline=None, max_examples=20)
@given(borders=st.lists(st.integers(0, len(DATA)), max_size=6))
def test_how_it_arrives_does_not_matter(borders: list[int]) -> None:
    """The same bytes in other pieces, across the borders of our blocks, are cut alike; nothing is lost, and lengths are in bounds."""
    ends = sorted({0, *borders, len(DATA)})
    chunks = cut([DATA[start:stop] for start, stop in pairwise(ends)])
    assert chunks == cut([DATA])
    assert b"".join(chunks) == DATA
    assert all(SMALL.minimum <= len(chunk) <= SMALL.maximum for chunk in chunks[:-1])


def test_an_insertion_moves_no_cut_behind_it() -> None:
    """All chunks but a few are the same after bytes were put in near the front."""
    changed = cut([DATA[:1000], b"inserted", DATA[1000:]])
    assert len(set(changed) - set(cut([DATA]))) <= 3


def test_each_repository_cuts_elsewhere() -> None:
    """Two repositories cut equal data at different places; one with the identity of another cuts as that does."""
    one, two = RepositoryKeys.generate(), RepositoryKeys.generate()
    assert set(cut([DATA], seed=chunking_seed(one))).isdisjoint(cut([DATA], seed=chunking_seed(two)))
    assert chunking_seed(RepositoryKeys(two.master, one.identity)) == chunking_seed(one)
    assert 0 < chunking_seed(one) < 2**63


@pytest.mark.parametrize("size", [MIN_CHUNK_SIZE, 128 * KiB, MAX_CHUNK_SIZE])
def test_lengths_for_every_repository(size: int) -> None:
    """Whatever a repository's chunk size is, the library takes the lengths, and no chunk is larger than a reader takes."""
    chunking = chunking_for(size)
    assert chunking.maximum <= MAX_CHUNK_SIZE
    assert chunking.average == min(size, MAX_AVERAGE)
    assert b"".join(cut([DATA], chunking)) == DATA


def test_one_buffer_after_another() -> None:
    """After an end the next bytes begin a chunk of their own, cut as if they came alone."""
    chunks: list[bytes] = []
    cutter = Cutter(SMALL, 1, lambda _block, view, _lengths: chunks.append(bytes(view)))
    for part in (DATA[:100_000], b"x", DATA[:100_000]):
        cutter.feed(part)
        cutter.end()
    assert chunks == [DATA[:100_000], b"x", DATA[:100_000]]
