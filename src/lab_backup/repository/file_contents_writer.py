"""The contents of a tree's files as one stream: each file is cut by itself, small ones lie together in bundles.

A file that did not change since another backup is taken over as pieces of the chunks there, also out of the middle of a bundle. So the
list is put together in order from what is there, what is being stored, and what waits for its bundle to be full.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple

from lab_backup.filetree import FileContent
from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.chunking import Chunking, Cutter
from lab_backup.repository.file_rows import MAX_RUNS
from lab_backup.repository.stream_tree import Link, StreamBuilder, StreamRef
from lab_backup.repository.stream_writer import ChunkThreads, Stored, pieces

MAX_LINE = 16384  # pieces that wait for one before them


class _Bundle:
    """Small files that become one chunk."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.future: Future[Stored] | None = None
        self.id: bytes | None = None


class _Part(NamedTuple):
    """A small file in a bundle."""

    bundle: _Bundle
    skip: int
    length: int


class _Batch(NamedTuple):
    """Chunks of a large file."""

    future: Future[Stored]
    lengths: list[int]


class ContentsWriter:
    """Puts the contents of one tree's files together. For one thread, within `threads.running`."""

    def __init__(self, store: ChunkStore, threads: ChunkThreads, chunking: Chunking, seed: int, counts: Counts) -> None:
        """Store chunks by `threads`, cut by `chunking` with `seed`; count in `counts`."""
        self._store = store
        self._threads = threads
        self._counts = counts
        self._average = chunking.average
        self._cutter = Cutter(chunking, seed, self._emit)
        self._builder = StreamBuilder(lambda node: store.node(node, counts))
        self._line: deque[Link | _Part | _Batch] = deque()
        self._last: Link | None = None
        self._bundle: _Bundle | None = None
        self._small = memoryview(bytearray(chunking.average // 2))
        self._relied_on = b""

    def may_reuse(self, links: Iterable[Link]) -> bool:
        """Return whether a file that is stored as these pieces may be referred to; if so, the backup relies on them from now on."""
        for link in links:
            if link.id != self._relied_on:
                if not self._store.rely_on(link.id):
                    return False
                self._relied_on = link.id
        return True

    def reuse(self, links: list[Link]) -> None:
        """Append a file that `may_reuse` allowed."""
        self._counts.chunks_reused += len(links)
        if self._line:
            self._line.extend(links)
            self._drain()
        else:
            for link in links:
                self._append(link)

    def write(self, content: FileContent, advance: Callable[[int], None]) -> tuple[int, ...]:
        """Read a file and append it; return the lengths of its runs, as a row of the catalogue has them.

        A file that is cut while it is read ends where reading ended. `advance` is told the bytes that were read.
        """
        runs: list[int] = []
        reading = _Reading(content, self._cutter, self._small, advance)
        for extent in content.extents():
            hole = extent.zero and len(runs) < MAX_RUNS
            done = extent.length if hole else reading.read(extent.offset, extent.length)
            _add_run(runs, done, hole=hole)
            if done < extent.length:
                break
        self._counts.bytes_read += reading.done
        if reading.large:
            self._cutter.end()
        elif reading.held:
            self._put_small(content.record.path, self._small[: reading.held])
        self._drain()
        return tuple(runs)

    def finish(self) -> StreamRef:
        """Return the stream, after the last file."""
        self._close_bundle()
        while self._line:
            self._take(self._line.popleft())
        if self._last is not None:
            self._builder.add(self._last)
        return self._builder.finish()

    # --- small files ---

    def _put_small(self, path: bytes, data: memoryview) -> None:
        bundle = self._bundle = self._bundle or _Bundle()
        self._line.append(_Part(bundle, len(bundle.data), len(data)))
        bundle.data += data
        size = len(bundle.data)
        # Where a bundle ends depends on names and lengths, not on where it began: so it ends there also after files came or went before.
        chosen = zlib.crc32(path) * self._average < len(data) << 32
        if size >= 2 * self._average or (chosen and size >= self._average // 4):
            self._close_bundle()

    def _close_bundle(self) -> None:
        if self._bundle is not None:
            self._bundle.future = self._threads.submit([memoryview(self._bundle.data)])
            self._bundle = None

    # --- large files ---

    def _emit(self, block: bytearray, view: memoryview, lengths: list[int]) -> None:
        chunks = pieces(view, lengths)
        self._line.append(_Batch(self._threads.submit(chunks, lambda: self._cutter.buffers.give(block)), lengths))
        self._drain()

    # --- the list, in order ---

    def _drain(self) -> None:
        """Take what is known into the list; wait for more only where too much waits."""
        while self._line:
            head = self._line[0]
            if len(self._line) > MAX_LINE:
                self._close_bundle()
            elif (isinstance(head, _Batch) and not head.future.done()) or (
                isinstance(head, _Part) and (head.bundle.future is None or not head.bundle.future.done())
            ):
                return
            self._take(self._line.popleft())

    def _take(self, head: Link | _Part | _Batch) -> None:
        if isinstance(head, Link):
            self._append(head)
        elif isinstance(head, _Part):
            bundle = head.bundle
            if bundle.id is None and bundle.future is not None:
                bundle.id = self._threads.result(bundle.future)[0]
                bundle.data = bytearray()
            if bundle.id is None:
                raise AssertionError
            self._append(Link(bundle.id, head.skip, head.length))
        else:
            for identity, length in zip(self._threads.result(head.future), head.lengths, strict=True):
                self._append(Link(identity, 0, length))

    def _append(self, link: Link) -> None:
        last = self._last
        if last is not None and last.id == link.id and last.skip + last.length == link.skip:
            self._last = Link(last.id, last.skip, last.length + link.length)
            return
        if last is not None:
            self._builder.add(last)
        self._last = link


class _Reading:
    """One file being read: into a buffer as long as it fits there, else into the cutter."""

    def __init__(self, content: FileContent, cutter: Cutter, small: memoryview, advance: Callable[[int], None]) -> None:
        self._content = content
        self._cutter = cutter
        self._small = small
        self._advance = advance
        self.held = 0
        self.done = 0
        self.large = False

    def read(self, offset: int, length: int) -> int:
        """Read so many bytes from `offset`, or as many as there are; return how many."""
        done = 0
        while done < length:
            if not self.large and self.held == len(self._small):
                self._cutter.feed(self._small)
                self.large = True
            space = self._cutter.space() if self.large else self._small[self.held :]
            piece = space[: length - done]
            count = self._content.read_into(offset + done, piece)
            if self.large:
                self._cutter.add(count)
            else:
                self.held += count
            done += count
            self.done += count
            self._advance(count)
            if count < len(piece):
                break
        return done


def _add_run(runs: list[int], length: int, *, hole: bool) -> None:
    """Add a run to lengths of data, hole, data, hole ..."""
    if not length:
        return
    if len(runs) % 2 == hole:  # the last one is of the other kind
        runs.append(length)
    elif runs:
        runs[-1] += length
    else:
        runs += [0, length]
