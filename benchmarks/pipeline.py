"""The yardsticks: what this machine could do at best, without a repository. Each is one process and prints its seconds.

python pipeline.py full IMAGE      read, keyed BLAKE3, zstd-3, AES-256-GCM, append to one file, on all cores
python pipeline.py zstd IMAGE      nothing but zstd-3 over the same chunks, which lie in memory already
python pipeline.py hash IMAGE      read and BLAKE3, one core
python pipeline.py write IMAGE     write the image's data to a new thin file, from memory
"""

import argparse
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from zstandard import ZstdCompressor

from images import data_extents
from lab_backup.units import KiB, MiB, parse_size

LEVEL = 3
BATCH = 4 * MiB  # what a thread reads and appends at once
TAG = 16

Batch = tuple[int, int]  # offset, length


def batches(image: Path, chunk: int) -> Iterator[Batch]:
    """Cut the allocated parts of the image, widened to whole chunks, into batches."""
    done = 0
    size = image.stat().st_size
    for start, end in data_extents(image):
        at = max(done, start // chunk * chunk)
        done = min(size, -(-end // chunk) * chunk)
        while at < done:
            length = min(max(BATCH, chunk), done - at)
            yield at, length
            at += length


def in_threads(work: Callable[[Callable[[], Batch | None]], None], todo: Iterator[Batch], count: int) -> float:
    """Run `work` on `count` threads, which take batches from one queue; return the seconds."""
    lock = threading.Lock()

    def take() -> Batch | None:
        with lock:
            return next(todo, None)

    threads = [threading.Thread(target=work, args=(take,)) for _ in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def chunks_of(view: memoryview, chunk: int) -> Iterator[memoryview]:
    """Cut a batch into chunks, without those that hold only zeroes."""
    zeroes = bytes(chunk)
    for at in range(0, len(view), chunk):
        part = view[at : at + chunk]
        if part[:64] == zeroes[:64] and bytes(part) == zeroes[: len(part)]:
            continue
        yield part


def full(image: Path, output: Path, chunk: int, threads: int, *, sync: bool) -> tuple[float, int]:
    """Run the bare pipeline; return seconds and the bytes that went in."""
    id_key, data_key = secrets.token_bytes(32), secrets.token_bytes(32)
    source, target = os.open(image, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    lock = threading.Lock()
    total = 0

    def work(take: Callable[[], Batch | None]) -> None:
        nonlocal total
        compressor, cipher = ZstdCompressor(level=LEVEL), AESGCM(data_key)
        buffer = memoryview(bytearray(max(BATCH, chunk)))
        packed = memoryview(bytearray(2 * len(buffer) + 64 * KiB))
        while (batch := take()) is not None:
            offset, length = batch
            os.preadv(source, [buffer[:length]], offset)
            at = used = 0
            for part in chunks_of(buffer[:length], chunk):
                name = blake3(part, key=id_key).digest()
                small = compressor.compress(part)
                end = at + len(small) + TAG
                cipher.encrypt_into((offset + used).to_bytes(12, "little"), small, name, packed[at:end])
                at = end
                used += len(part)
            with lock:
                os.write(target, packed[:at])
                total += used

    seconds = in_threads(work, batches(image, chunk), threads)
    start = time.perf_counter()
    if sync:
        os.fsync(target)
    return seconds + time.perf_counter() - start, total


def zstd(image: Path, chunk: int, threads: int) -> tuple[float, int]:
    """All cores compress, and do nothing else. Returns the better of two ways to spread the work, and the bytes."""
    parts = _load(image, chunk)
    total = sum(map(len, parts))
    step = max(1, BATCH // chunk)
    todo = ((at, step) for at in range(0, len(parts), step))

    def work(take: Callable[[], Batch | None]) -> None:
        compressor = ZstdCompressor(level=LEVEL)
        while (batch := take()) is not None:
            for part in parts[batch[0] : batch[0] + batch[1]]:
                compressor.compress(part)

    by_threads = in_threads(work, todo, threads)
    start = time.perf_counter()
    for at in range(0, len(parts), 32 * step):
        part_of_all: list[bytes | bytearray | memoryview] = [*parts[at : at + 32 * step]]
        ZstdCompressor(level=LEVEL).multi_compress_to_buffer(part_of_all, threads=threads)
    return min(by_threads, time.perf_counter() - start), total


def hash_only(image: Path, chunk: int) -> tuple[float, int]:
    """One core reads and hashes."""
    buffer = memoryview(bytearray(max(BATCH, chunk)))
    total = 0
    start = time.perf_counter()
    with image.open("rb") as file:
        for offset, length in batches(image, chunk):
            os.preadv(file.fileno(), [buffer[:length]], offset)
            for at in range(0, length, chunk):
                blake3(buffer[at : min(at + chunk, length)]).digest()
            total += length
    return time.perf_counter() - start, total


def write(image: Path, output: Path, *, sync: bool) -> tuple[float, int]:
    """One thread writes the image's data to a thin file: the floor of every restore."""
    pieces: list[tuple[int, bytes]] = []
    with image.open("rb") as file:
        pieces.extend((offset, os.pread(file.fileno(), length, offset)) for offset, length in batches(image, 128 * KiB))
    start = time.perf_counter()
    with output.open("wb", buffering=0) as target:
        target.truncate(image.stat().st_size)
        for offset, data in pieces:
            os.pwrite(target.fileno(), data, offset)
        if sync:
            os.fsync(target.fileno())
    return time.perf_counter() - start, sum(len(data) for _, data in pieces)


def _load(image: Path, chunk: int) -> list[bytes]:
    parts: list[bytes] = []
    with image.open("rb") as file:
        for offset, length in batches(image, chunk):
            view = memoryview(os.pread(file.fileno(), length, offset))
            parts.extend(bytes(part) for part in chunks_of(view, chunk))
    return parts


def main() -> None:
    """Run one yardstick and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["full", "zstd", "hash", "write"])
    parser.add_argument("image", type=Path)
    parser.add_argument("--output", type=Path, help="the file that `full` and `write` make")
    parser.add_argument("--chunk-size", type=parse_size, default=128 * KiB)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    if options.what == "zstd":
        seconds, total = zstd(options.image, options.chunk_size, options.threads)
    elif options.what == "hash":
        seconds, total = hash_only(options.image, options.chunk_size)
    elif options.what == "full":
        seconds, total = full(options.image, options.output, options.chunk_size, options.threads, sync=options.fsync)
    else:
        seconds, total = write(options.image, options.output, sync=options.fsync)
    json.dump({"seconds": seconds, "bytes": total}, sys.stdout)


if __name__ == "__main__":
    main()
