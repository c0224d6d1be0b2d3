"""Stores a tree of files: what did not change since another backup is taken over from there, unread.

A file is unchanged where size, modification time, change time and inode number are as they were, and its change time lies before the other
backup began reading: a change within one tick of the file system's clock would leave no trace in the times.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lab_backup.filetree import FileKind, FileRecord, FileTree
from lab_backup.path_text import NameLists, shown
from lab_backup.repository.chunk_store import ChunkStore, Counts
from lab_backup.repository.chunking import chunking_for, chunking_seed
from lab_backup.repository.disk_writer import default_threads
from lab_backup.repository.errors import DamagedError, RepositoryError
from lab_backup.repository.file_catalogue_writer import CatalogueWriter
from lab_backup.repository.file_contents_writer import ContentsWriter
from lab_backup.repository.file_rows import Row, order, row_of
from lab_backup.repository.manifest import ChunkLengths, StreamRoot, TreeEntry
from lab_backup.repository.reader import Reader
from lab_backup.repository.repository import Repository
from lab_backup.repository.stored_files import Catalogue, StoredRow
from lab_backup.repository.stream_tree import Link, Placed, StreamReader, StreamRef
from lab_backup.repository.stream_writer import ChunkThreads

# Change times are given by a clock that ticks every 10 ms at the most on Linux, every 2 s on FAT, and on network file systems by a clock
# that is not ours.
TICK_NS = 2 * 10**9
MIN_USE = (
    0.5  # of a bundle: what is left of one that is used less is read again, so that the rest of it can be collected
)


class WrittenTree(NamedTuple):
    """What the manifest is to say, what happened, and what the user should know besides the tree's own warnings."""

    entry: TreeEntry
    counts: Counts
    warnings: tuple[str, ...]


class _Waiting(NamedTuple):
    """A name whose turn has not come. `row` is None while a file's content is expected; `links` are those of one that is not read."""

    record: FileRecord
    row: Row | None
    links: list[Link]


class FileTreeWriter:
    """Writes trees of files into one backup. Use from one thread; it has its own."""

    def __init__(
        self, repository: Repository, store: ChunkStore, reader: Reader, *, threads: int | None = None
    ) -> None:
        """Store in `store` on `threads` threads (by default one a core and one more); read earlier backups by `reader`."""
        self._store = store
        self._reader = reader
        self._threads = threads or default_threads()
        self._chunking = chunking_for(repository.config.chunk_size)
        self._seed = chunking_seed(repository.keys)

    def write(
        self,
        name: str,
        tree: FileTree,
        previous: TreeEntry | None,
        *,
        compact: bool,
        began_ns: int | None,
        advance: Callable[[int], None],
        pulse: Callable[[], None],
    ) -> WrittenTree:
        """Store `tree` as `name`; files that are as they were in `previous` are not read.

        `compact` looks first which bundles are hardly used any more. `began_ns` is the time by the clock of the tree's file system, by default ours. `advance`
        is told the bytes of files that were dealt with, `pulse` is called now and then. A damaged `previous` costs reading, never the
        backup. Raises what reading and storing raise; what was stored until then is garbage.
        """
        began = time.time_ns() if began_ns is None else began_ns
        counts = Counts()
        threads = ChunkThreads(self._store, counts, self._threads)
        known = None if previous is None else _Known(self._reader, previous, compact=compact)
        with threads.running():
            run = _Run(
                CatalogueWriter(self._store, threads, counts),
                ContentsWriter(self._store, threads, self._chunking, self._seed, counts),
                known,
                advance,
                pulse,
            )
            run.run(tree)
            contents = run.contents.finish()
            catalogue = run.catalogue.finish()
        for path in run.catalogue.stripped:
            run.unstored.add(
                "stored without their extended attributes, which are larger than a file system can have", path
            )
        warnings = run.unstored.sentences()
        if known is not None and known.damage is not None:
            warnings.append(f"{name}: the last backup is damaged ({known.damage}); what it does not tell was read anew")
        entry = TreeEntry(
            name=name,
            catalogue=_stream_root(catalogue),
            contents=_stream_root(contents),
            chunks=ChunkLengths(**self._chunking._asdict()),
            began_ns=began,
            kind="full" if previous is None else "incremental",
            names=run.catalogue.names,
            files_read=run.files_read,
            bytes_total=run.bytes_total,
            bytes_read=counts.bytes_read,
            bytes_stored=counts.bytes_stored,
        )
        return WrittenTree(entry, counts, tuple(warnings))


def _stream_root(stream: StreamRef) -> StreamRoot:
    return StreamRoot(size=stream.size, root=None if stream.root is None else stream.root.hex())


class _Run:
    """One tree on its way: names come ahead of the contents that were asked for, and both go on in catalogue order."""

    def __init__(
        self,
        catalogue: CatalogueWriter,
        contents: ContentsWriter,
        known: "_Known | None",
        advance: Callable[[int], None],
        pulse: Callable[[], None],
    ) -> None:
        self.catalogue = catalogue
        self.contents = contents
        self.unstored = NameLists()
        self.files_read = 0
        self.bytes_total = 0
        self._known = known
        self._advance = advance
        self._pulse = pulse
        self._waiting: deque[_Waiting] = deque()
        self._gone: set[bytes] = set()  # files without content: links to them have nothing to link to

    def run(self, tree: FileTree) -> None:
        """Store all of the tree."""
        for content in tree.contents(self._wanted(tree)):
            path = content.record.path
            while self._waiting and self._waiting[0].record.path != path:
                self._pass(self._waiting.popleft())
            if not self._waiting:
                raise RepositoryError(
                    f"the source of this tree of files gave {shown(path)} out of its turn", hint="report this as a bug"
                )
            self._waiting.popleft()
            self.files_read += 1
            self._add(row_of(content.record, self.contents.write(content, self._advance)))
            self._pulse()
        while self._waiting:
            self._pass(self._waiting.popleft())

    def _wanted(self, tree: FileTree) -> Iterator[FileRecord]:
        """Yield the files that must be read; everything else goes on by itself."""
        for number, record in enumerate(tree.records()):
            if number % 1024 == 0:
                self._pulse()
            if record.kind is not FileKind.FILE:
                self._waiting.append(_Waiting(record, row_of(record), []))
            else:
                waiting = self._unchanged(record)
                self._waiting.append(waiting)
                if waiting.row is None:
                    yield record
            while self._waiting and self._waiting[0].row is not None:
                self._pass(self._waiting.popleft())

    def _unchanged(self, record: FileRecord) -> _Waiting:
        """Decide whether a file must be read."""
        found = None if self._known is None else self._known.unchanged(record)
        if found is None or not self.contents.may_reuse(found.links):
            return _Waiting(record, None, [])
        return _Waiting(record, row_of(record, found.runs), found.links)

    def _pass(self, waiting: _Waiting) -> None:
        """Store a name whose turn it is, and whose content is stored already if it has one; a file whose content never came is left out."""
        record, row, links = waiting
        if row is None:
            self._gone.add(record.path)
        elif record.kind is FileKind.HARDLINK and record.target in self._gone:
            self.unstored.add("left out, since what they are links to could not be read", record.path)
        else:
            self._add(row)
            if links:
                self.contents.reuse(links)
                self._advance(row.stored)

    def _add(self, row: Row) -> None:
        self.catalogue.add(row)
        if row.kind is FileKind.FILE:
            self.bytes_total += row.size


class _Unchanged(NamedTuple):
    runs: tuple[int, ...]
    links: list[Link]


class _Known:
    """An earlier backup of a tree, gone through beside the tree itself. Where it cannot be read it knows nothing."""

    def __init__(self, reader: Reader, entry: TreeEntry, *, compact: bool) -> None:
        """Look at `entry`. With `compact`, files in bundles that are hardly used count as changed."""
        self._rows = Catalogue(reader, entry).rows()
        self._here: StoredRow | None = None
        self._pieces = _Pieces(reader, entry.contents_stream)
        self._until = entry.began_ns - TICK_NS
        self._wasteful: set[bytes] = set()
        self.damage: DamagedError | None = None
        try:
            self._here = next(self._rows, None)
            if compact:
                self._wasteful = _wasteful(reader, entry.contents_stream)
        except DamagedError as error:
            self._give_up(error)

    def _give_up(self, error: DamagedError) -> None:
        self.damage = self.damage or error
        self._here = None
        self._rows = iter(())

    def unchanged(self, record: FileRecord) -> _Unchanged | None:
        """Return where the content of the file is stored, or None where it must be read. Paths ascend from call to call."""
        try:
            here = self._here
            if here is not None and here.row.path != record.path:
                key = order(record.path)
                while here is not None and order(here.row.path) < key:
                    here = next(self._rows, None)
                self._here = here
            if here is None or here.row.path != record.path:
                return None
            row = here.row
            if (
                record.ctime_ns >= self._until
                or row.ctime_ns != record.ctime_ns
                or row.mtime_ns != record.mtime_ns
                or row.size != record.size
                or row.inode != record.inode
                or row.kind is not FileKind.FILE
            ):
                return None
            links = self._pieces.take(here.start, here.stop)
            if self._wasteful and any(link.id in self._wasteful for link in links):
                return None
            return _Unchanged(row.runs, links)
        except DamagedError as error:
            self._give_up(error)
            return None


class _Pieces:
    """The pieces of a tree's contents, from front to back."""

    def __init__(self, reader: Reader, stream: StreamRef) -> None:
        self._pieces = StreamReader(stream, reader.node).pieces()
        self._here: Placed | None = None

    def take(self, start: int, stop: int) -> list[Link]:
        """Return the pieces of [start, stop), cut at its ends; `start` never goes back. Raises DamagedError."""
        links: list[Link] = []
        while start < stop:
            here = self._here
            if here is None or here.offset + here.link.length <= start:
                self._here = next(self._pieces, None)
                if self._here is None:
                    raise DamagedError("the contents of a tree of files end before its catalogue does")
                continue
            skipped = start - here.offset
            length = min(here.link.length - skipped, stop - start)
            links.append(Link(here.link.id, here.link.skip + skipped, length))
            start += length
        return links


def _wasteful(reader: Reader, stream: StreamRef) -> set[bytes]:
    """Return the chunks of which a tree uses so little that they should go. Raises DamagedError."""
    used: dict[bytes, int] = {}
    sizes: dict[bytes, int] = {}
    for _, _, link in StreamReader(stream, reader.node).pieces():
        location = reader.find(link.id)
        if location is not None and link.length < location.entry.raw:
            sizes[link.id] = location.entry.raw
            used[link.id] = used.get(link.id, 0) + link.length
    return {identity for identity, size in used.items() if size < sizes[identity] * MIN_USE}
